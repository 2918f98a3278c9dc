"""The parts of the Python API that need no child process."""

from pathlib import Path

import pytest

from archaeologist.analyses import known_analyses
from archaeologist.api import (
    analyze,
    known_device,
    known_metrics,
    layer_drift_job,
    layer_stats_job,
    raise_coded,
)
from archaeologist.errors import (
    CheckpointError,
    CheckpointMissing,
    InternalError,
    PermanentError,
    ProbesInvalid,
    ProbesMissing,
    ShardMissing,
    UsageError,
)
from contracts.messages import EventError
from tests.fixtures.checkpoints import write_checkpoint


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("shard_missing", ShardMissing),
        ("checkpoint_unreadable", CheckpointError),
        ("internal_error", InternalError),
        ("a code of the future", PermanentError),
    ],
)
def test_a_code_comes_back_as_its_class(code: str, expected: type[PermanentError]) -> None:
    with pytest.raises(PermanentError, match="the message") as raised:
        raise_coded(EventError(code=code, message="the message"))
    assert type(raised.value) is expected


def test_metrics_are_taken_once_in_the_order_of_job_keys() -> None:
    assert known_metrics(["l2", "cosine", "l2"]) == ("cosine", "l2")


@pytest.mark.parametrize("names", [[], ["l2", "l3"], [""]])
def test_metrics_that_are_not_known_are_refused_with_the_known(names: list[str]) -> None:
    with pytest.raises(UsageError, match="l2, cosine, frobenius"):
        known_metrics(names)


def test_a_text_alone_is_one_name() -> None:
    assert known_metrics("l2") == ("l2",)
    assert known_analyses("spectra") == ("spectra",)


def test_a_negative_number_of_threads_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-100", step=100)
    with pytest.raises(UsageError, match=r"threads is -1, .* use 0"):
        analyze(checkpoint, threads=-1)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_of_tokens_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-100", step=100)
    with pytest.raises(UsageError, match=f"max_probe_tokens is {limit}, .* 1 or more"):
        analyze(checkpoint, max_probe_tokens=limit)


def test_a_base_without_an_adapter_is_refused_with_what_may_be_meant(tmp_path: Path) -> None:
    first, second = (write_checkpoint(tmp_path / f"checkpoint-{step}", step=step) for step in (100, 200))
    with pytest.raises(UsageError, match=r"'.*checkpoint-200' is none; to compare with it, name it as the reference$"):
        layer_stats_job(second, base=first)
    with pytest.raises(UsageError, match=r"base 'nowhere' .* neither '.*-200' nor '.*-100' is one; to compare"):
        layer_stats_job(second, reference=first, base="nowhere")
    with pytest.raises(UsageError, match=r"base 'nowhere' .* neither '.*-100' nor '.*-200' is one; leave it out"):
        layer_drift_job(first, second, adapted="nowhere")


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices_are_known_by_torchs_names(name: str) -> None:
    assert known_device(name) == name


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda\n", "CPU"])
def test_a_device_that_is_not_known_is_refused_with_the_known(name: str) -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda or cuda:N"):
        known_device(name)


def test_a_probe_set_that_is_named_and_not_there_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(ProbesMissing, match="probe set 'typo' is none of the package's"):
        analyze(tmp_path / "nowhere", probes="typo", probes_folder=tmp_path)
    with pytest.raises(ProbesInvalid, match="probe set 'broken', line 1"):
        analyze(tmp_path / "nowhere", probes="broken", probes_folder=tmp_path)
    with pytest.raises(CheckpointMissing):
        analyze(tmp_path / "nowhere", probes="typo", compute_activations=False)


def test_an_edited_probe_set_makes_another_job(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-100", step=100)
    probes = tmp_path / "probes" / "mine.jsonl"
    probes.parent.mkdir()

    def key() -> str:
        return layer_stats_job(checkpoint, probes="mine", probes_folder=probes.parent).job_key

    missing = key()
    probes.write_text('{"text": "one"}\n')
    first = key()
    assert key() == first
    probes.write_text('{"text": "two"}\n')
    assert len({missing, first, key()}) == 3
