"""The log as a journal, a file and a terminal get it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from archaeologist.daemon import outputs
from archaeologist.daemon.outputs import output_path
from archaeologist.settings import Settings
from tests.fixtures.hostile import STEERING
from tests.fixtures.programs import Daemon
from tests.integration.daemon.house import of, opened, with_quick_children
from tests.integration.test_cli import cli, environment

PROGRAM: Final = """\
import logging, structlog
from archaeologist.logs import configure
from archaeologist.settings import LogSettings
configure(LogSettings())
log = structlog.get_logger("x")
with structlog.contextvars.bound_contextvars(job_key="k"):
    log.warning("from structlog", number=1)
    logging.getLogger("y").error("from logging", extra={"number": 2, "color_message": "red"})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
"""


FORGING: Final = f"""\
import logging, structlog
from archaeologist.logs import configure
from archaeologist.settings import LogSettings
configure(LogSettings())
structlog.get_logger("x").warning({STEERING!r}, value={STEERING!r}, values=[{STEERING!r}])
logging.getLogger("y").warning({STEERING!r}, extra={{"value": {STEERING!r}}})
try:
    raise ValueError({STEERING!r})
except ValueError:
    structlog.get_logger("x").exception("broken")
"""


def printed(stderr: int, *, program: str = PROGRAM, **environment: str) -> None:
    """Runs the program with its log on a descriptor."""
    variables = {**os.environ, **environment}
    subprocess.run([sys.executable, "-c", program], check=True, stderr=stderr, env=variables, timeout=60)


def through_a_pipe(*, is_journal: bool, program: str = PROGRAM) -> list[str]:
    """The lines that come out of a pipe, which the journal reads or somebody else."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    inode = status.st_ino if is_journal else status.st_ino + 1
    printed(writing, program=program, JOURNAL_STREAM=f"{status.st_dev}:{inode}")
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", newline="\n") as lines:
        return lines.read().removesuffix("\n").split("\n")


def test_the_journal_gets_one_json_object_a_line_with_its_priority_before_it() -> None:
    lines = through_a_pipe(is_journal=True)
    assert [line[:3] for line in lines] == ["<4>", "<3>", "<3>"]
    first, second, third = (json.loads(line[3:]) for line in lines)
    assert (first["event"], first["number"], first["job_key"]) == ("from structlog", 1, "k")
    assert (second["event"], second["number"], second["job_key"]) == ("from logging", 2, "k")
    assert "color_message" not in second
    assert "ZeroDivisionError" in third["exception"]


def test_a_file_gets_json_without_priorities() -> None:
    assert [json.loads(line)["level"] for line in through_a_pipe(is_journal=False)] == ["warning", "error", "error"]


def test_a_terminal_gets_words() -> None:
    ours, theirs = pty.openpty()
    printed(theirs)
    os.close(theirs)
    text = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "from structlog" in text
    assert '{"' not in text


@pytest.mark.parametrize("is_journal", [True, False])
def test_what_others_wrote_begins_no_line_of_its_own_and_steers_no_terminal(*, is_journal: bool) -> None:
    lines = through_a_pipe(is_journal=is_journal, program=FORGING)
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 3
    if is_journal:
        assert [line[:3] for line in lines] == ["<4>", "<4>", "<3>"]
    first, second, third = (json.loads(line[3:] if is_journal else line) for line in lines)
    assert first["event"] == first["value"] == first["values"][0] == STEERING
    assert second["event"] == second["value"] == STEERING
    assert STEERING in third["exception"]


def test_what_others_wrote_is_escaped_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    printed(theirs, program=FORGING, NO_COLOR="1", TERM="dumb")
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert text.count("\\x1b[2J") == 6
    assert "\u2028" not in text
    assert "\x9b" not in text
    assert "\x1b[2J" not in text


# Found from a job's id.


async def test_what_a_daemon_logs_of_a_job_carries_its_key_and_its_id(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.save(100)
        async with Daemon(root=house.settings.root_path, url=house.server.url) as daemon:
            await house.request("mine", checkpoint_step=100)
            await house.request("unknown", checkpoint_step=99)
            await house.until_event(of("mine", "completed"))
            await house.until_event(of("unknown", "failed"))
            await daemon.stop()
            lines = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    of_jobs = [line for line in lines if line["event"] in {"job started", "job ended"}]
    assert [line["job_id"] for line in of_jobs] == ["mine", "mine"]
    accepted, refused = (next(line for line in lines if line["event"] == name) for name in ("accepted", "refused"))
    assert {line["job_key"] for line in of_jobs} == {accepted["job_key"]}
    assert (accepted["request_id"], refused["request_id"]) == ("mine", "unknown")


async def test_a_job_s_artifact_and_the_last_words_of_its_process_are_found_from_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as house:
        root = house.settings.root_path
        for step, fate in ((100, "succeed"), (200, "crash")):
            with_quick_children(monkeypatch, fate=fate)
            house.save(step)
            async with house.daemon():
                await house.request(f"r{step}", checkpoint_step=step)
                _, record = await house.until_ended(f"r{step}")
            assert record is not None
            shown = await cli("jobs", "show", f"r{step}", env=environment(root, house.server.url))
            if fate == "succeed":
                assert str(house.folder.layer_stats(step)) in shown.out
            else:
                printed_by_it = output_path(house.settings, record.job.job_key)
                assert printed_by_it.read_text() == "about to crash\n"
                assert str(printed_by_it) in shown.out
                assert "about to crash" in shown.out


def test_the_end_of_what_a_job_s_process_printed_is_kept_and_thinned(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path))
    path = output_path(settings, "key")
    outputs.keep_output(path, b"words")
    assert path.read_bytes() == b"words"
    outputs.keep_output(path, b"")
    assert not path.exists()
    for number in range(outputs.MAX_KEPT + 3):
        outputs.keep_output(output_path(settings, f"k{number}"), b"x")
    assert len(list(path.parent.iterdir())) == outputs.MAX_KEPT
