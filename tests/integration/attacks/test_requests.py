"""Messages of somebody who may publish, sent to a real daemon over a real server: each is refused once, with a code."""

import os
from pathlib import Path
from typing import Any, Final

import pytest

from archaeologist.bus.log import events
from archaeologist.daemon.decoding import MAX_BYTES
from archaeologist.excavation import layer_stats
from contracts import subjects
from contracts.messages import Event, Excavation, ForwardOptions, JobOptions
from tests.fixtures.checkpoints import write_checkpoint
from tests.fixtures.hostile import MARKUP
from tests.fixtures.jobs import layer_stats_job, side
from tests.integration.daemon.house import House, with_quick_children

OUTSIDE: Final = (
    "/etc/passwd",
    "/etc",
    "../../../../../../../../etc",
    "checkpoint-1/../../../../../../etc",
    "/proc/self/root/etc",
    "/proc/self/environ",
    "/dev/zero",
    "link-out",
    "link-out/passwd",
    "checkpoint-100/../link-out",
)
"""Paths that lead out of the root, in one way or another."""

NOT_THERE: Final = (
    "x" * 300,
    "x/" * 2000,
    "a" * 4096,
    "checkpoint-１００",  # noqa: RUF001 -- digits of another script
    "checkpoint-100\n",
    "checkpoint\u2215100",
    "~root",
    "$HOME",
    "%2e%2e/%2e%2e/etc",
    "..\\..\\etc",
    "file:///etc/passwd",
    "\u202e\u2066x",
    "model.safetensors\u0000"[:-1] + "/x",
    "pipe",
    "pipe/x",
    "loop",
    "device",
    "file.safetensors",
    MARKUP,
)
"""Paths below the root at which no checkpoint lies."""

NAMES: Final = (
    "..",
    ".",
    "",
    "a/b",
    "../x",
    "a\\b",
    "a\n",
    "a\u0000",
    "ａ",  # noqa: RUF001 -- looks like a
    "аdmin",  # noqa: RUF001 -- begins with a Cyrillic letter
    "a..b",
    ".hidden",
    "-option",
    "x" * 129,
    "con>*",
    "a.b*.>",
    MARKUP,
)
"""What is no plain name."""

PATHS: Final = (
    "checkpoint_path",
    "reference_checkpoint_path",
    "base_checkpoint_path",
    "target_checkpoint_path",
    "output_path",
)


def requests() -> list[tuple[dict[str, Any], set[str]]]:
    """Fields of a request, and the codes of which it gets one."""
    found: list[tuple[dict[str, Any], set[str]]] = []
    for field in PATHS:
        found += [(within(field, path), {"path_outside_root", "reference_unavailable"}) for path in OUTSIDE]
        found.append((within(field, "a\u0000b"), {"message_invalid"}))
        found.append((within(field, "a" * 4097), {"message_invalid"}))
    for field in PATHS[:-1]:
        codes = {"reference_unavailable"} if field.startswith(("reference", "base")) else set()
        kinds = {"checkpoint_missing", "checkpoint_empty", "checkpoint_format_unsupported", "checkpoint_unreadable"}
        kinds |= {"header_invalid", "step_unknown", "path_outside_root"}
        found += [(within(field, path), codes | kinds) for path in NOT_THERE]
    for field in ("hero_id", "campaign_id"):
        found += [({"checkpoint_step": 100, field: name}, {"message_invalid"}) for name in NAMES]
    return found


def within(field: str, path: str) -> dict[str, Any]:
    """A request that is right but for one path."""
    if field.startswith(("base", "target")):
        sides = {"base_checkpoint_step": 100, "target_checkpoint_step": 100}
        del sides[field.replace("_path", "_step")]
        return {"job_type": "layer_drift", **sides, field: path}
    return {field: path} if field == "checkpoint_path" else {"checkpoint_step": 100, field: path}


def prepare(house: House) -> None:
    """A checkpoint, and beside it what a hostile trainer may leave there."""
    house.save(100)
    checkpoints = house.folder.checkpoints
    os.mkfifo(checkpoints / "pipe")
    os.mkfifo(checkpoints / "file.safetensors")
    for folder in (checkpoints, house.settings.root_path):
        (folder / "link-out").symlink_to("/etc")
    (checkpoints / "device").symlink_to("/dev/zero")
    (checkpoints / "loop").symlink_to("loop")


async def failures(house: House) -> dict[str, list[Event]]:
    """What was said of each request."""
    found: dict[str, list[Event]] = {}
    async for logged in events(house.bus, follow=False):
        found.setdefault(logged.event.data["job_id"], []).append(logged.event)
    return found


async def dead(house: House) -> int:
    """How many dead letters there are."""
    return int((await house.bus.jetstream.stream_info(subjects.DEAD)).state.messages)


@pytest.mark.timeout(240)
async def test_every_trick_in_every_path_is_refused_once_with_a_code(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(house)
    with_quick_children(monkeypatch)
    asked = requests()
    async with house.daemon():
        for number, (fields, _) in enumerate(asked):
            await house.request(f"r{number}", **fields)
        for number in range(len(asked)):
            request, job = await house.until_ended(f"r{number}")
            assert (request.state, job) == ("refused", None), asked[number]
    said = await failures(house)
    for number, (fields, codes) in enumerate(asked):
        (event,) = said[f"r{number}"]
        assert event.type == "analysis.failed"
        assert event.data["error"]["code"] in codes, (fields, event.data["error"])
    assert await dead(house) == len(asked)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../checkpoint-100", "link", "pipe", "x" * 300, "a/../../..", "/proc/self/environ", "loop"]
)
def test_every_trick_in_a_probe_sets_name_costs_the_activations_alone(tmp_path: Path, name: str) -> None:
    folder, probes = write_checkpoint(tmp_path / "checkpoint-100"), tmp_path / "probes"
    probes.mkdir()
    (probes / "link").symlink_to("/etc/passwd")
    (probes / "loop").symlink_to("loop")
    os.mkfifo(probes / "pipe")
    job = layer_stats_job(side(folder, 100), options=JobOptions(probe_dataset=name, max_probe_tokens=64))
    options = ForwardOptions(probes_folder=str(probes))
    excavation = Excavation(job=job, artifact_path=str(tmp_path / "a.tmp"), threads=1, activations=options)
    artifact, _ = layer_stats.excavate(excavation, lambda _: None)
    assert artifact.weight_stats
    code = artifact.not_computed["activations"].partition(":")[0]
    assert code in {"path_outside_root", "probes_missing", "probes_invalid"}


def deep(levels: int) -> bytes:
    return b'{"request_id":"x","a":' + b"[" * levels + b"]" * levels + b"}"


BODIES: Final[dict[str, tuple[bytes, str]]] = {
    "empty": (b"", "message_malformed"),
    "too deep": (deep(17), "message_malformed"),
    "as deep as our own decoder bears": (deep(900), "message_malformed"),
    "much too deep": (deep(100_000), "message_malformed"),
    "too large": (b'{"a":"' + b"x" * MAX_BYTES + b'"}', "message_malformed"),
    "not UTF-8": (b'{"hero_id":"\xff\xfe"}', "message_malformed"),
    "half a surrogate pair": (b'{"hero_id":"\\ud800"}', "message_malformed"),
    "a number too large": (b'{"level":' + b"9" * 5000 + b"}", "message_malformed"),
    "a pickle": (b"\x80\x04\x95", "message_malformed"),
    "lines of headers": (b"\r\nNats-Msg-Id: x\r\n\r\n", "message_malformed"),
}


@pytest.mark.parametrize("subject", [subjects.CHECKPOINT_SAVED, subjects.SKILL_EVALUATED, subjects.ANALYSIS_REQUESTED])
async def test_what_is_no_message_is_buried_and_the_log_can_still_be_read(house: House, subject: str) -> None:
    async with house.daemon():
        for body, _ in BODIES.values():
            await house.say_raw(subject, body)
        await house.say(subject, request_id="last")
        await house.until_ended("last")
    read = [event async for event in events(house.bus, follow=False)]
    codes = [logged.event.data["error"]["code"] for logged in read]
    assert codes == [*(code for _, code in BODIES.values()), "message_invalid"]
    assert await dead(house) == len(BODIES) + 1


async def test_an_error_with_lines_and_escapes_makes_one_line_of_a_header(house: House) -> None:
    trick = "x\r\nNats-Msg-Id: forged\r\n\u2028\u0085\x1b[31m\x00\x7f"
    async with house.daemon():
        await house.request("trick", job_type=trick, checkpoint_step=100)
        request, _ = await house.until_ended("trick")
    assert request.error is not None
    assert request.error.code == "job_type_unknown"
    stored = await house.bus.jetstream.get_msg(subjects.DEAD, seq=1)
    assert stored.headers is not None
    assert stored.headers[subjects.MESSAGE_ID] == "trick:dead"
    assert all(character.isprintable() for value in stored.headers.values() for character in value)
