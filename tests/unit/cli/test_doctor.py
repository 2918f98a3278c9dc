"""What doctor concludes from what it found."""

from pathlib import Path

import pytest

from archaeologist.bus.health import Health
from archaeologist.cli.doctor import GIB, Check, Status, disk, libraries, link, server
from contracts.messages import GpuOptions

WORKING = {"numba": "0.68", "torch": "2.13", "transformers": "5.2", "cuda": None}


def status(checks: list[Check], name: str) -> Status:
    return next(check.status for check in checks if check.name == name)


@pytest.mark.parametrize(("free_gib", "expected"), [(0.1, "error"), (2, "warning"), (50, "ok")])
def test_little_room_on_the_disk_is_told(free_gib: float, expected: Status) -> None:
    assert disk(int(free_gib * GIB)).status == expected


def test_no_gpu_is_all_right() -> None:
    assert {check.status for check in libraries(WORKING, gpu=None, options=GpuOptions())} == {"ok"}


def test_a_gpu_that_torch_cannot_use_is_a_warning_with_the_remedy() -> None:
    checks = list(libraries(WORKING, gpu="RTX 3090", options=GpuOptions()))
    assert status(checks, "gpu") == "warning"
    assert "CUDA build of torch" in (checks[-1].remedy or "")


def test_a_cuda_torch_that_sees_no_gpu_is_a_warning_with_the_remedy() -> None:
    checks = list(libraries({**WORKING, "cuda": "12.8", "sees_gpu": False}, gpu="G", options=GpuOptions()))
    assert status(checks, "gpu") == "warning"
    assert "nvidia-smi" in (checks[-1].remedy or "")


@pytest.mark.parametrize(
    ("free_gb", "options", "expected", "words"),
    [
        (20, GpuOptions(), "ok", "20.0 of 24.0 GB free; a job may use 12.0 GB"),
        (5, GpuOptions(), "ok", "a job may use 3.0 GB"),
        (1, GpuOptions(), "warning", "a job may use 0.0 GB"),
        (1, GpuOptions(device="cpu"), "ok", "not used"),
    ],
)
def test_what_a_job_may_use_of_a_gpu_is_told(free_gb: int, options: GpuOptions, expected: Status, words: str) -> None:
    found = {**WORKING, "cuda": "12.8", "sees_gpu": True, "gpu_bytes": [free_gb * 10**9, 24 * 10**9]}
    check = list(libraries(found, gpu="G", options=options))[-1]
    assert (check.name, check.status) == ("gpu", expected)
    assert words in check.message


def test_a_gpu_whose_memory_cannot_be_asked_for_is_a_warning() -> None:
    found = {**WORKING, "cuda": "12.8", "sees_gpu": True, "gpu_trouble": "CUDA error: out of memory"}
    check = list(libraries(found, gpu="G", options=GpuOptions()))[-1]
    assert (check.status, "out of memory" in check.message) == ("warning", True)


def test_without_numba_nothing_works_and_without_torch_much_does() -> None:
    checks = list(
        libraries({**WORKING, "numba": "!ImportError: x", "torch": "!ImportError: y"}, gpu=None, options=GpuOptions())
    )
    assert status(checks, "numba") == "error"
    assert status(checks, "torch") == "warning"


def test_a_server_of_today_with_jetstream_is_all_right() -> None:
    health = Health(version=(2, 15, 1), has_jetstream=True, clock_offset_seconds=0.01)
    assert {check.status for check in server(health, shown="nats://x")} == {"ok"}


def test_an_old_server_is_an_error() -> None:
    assert status(server(Health(version=(2, 9, 30), has_jetstream=True), shown="nats://x"), "bus") == "error"


def test_a_server_without_jetstream_is_an_error() -> None:
    checks = server(Health(version=(2, 15, 1), has_jetstream=False, reason="off"), shown="nats://x")
    assert status(checks, "jetstream") == "error"


@pytest.mark.parametrize(("offset", "expected"), [(-90.0, "warning"), (90.0, "warning"), (1.0, "ok")])
def test_a_clock_that_is_off_is_a_warning(offset: float, expected: Status) -> None:
    health = Health(version=(2, 15, 1), has_jetstream=True, clock_offset_seconds=offset)
    assert status(server(health, shown="nats://x"), "clock") == expected


def test_a_link_is_tried_and_removed(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"x")
    assert link(weights, tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == [weights]
    assert weights.stat().st_nlink == 1


def test_a_link_that_is_impossible_is_a_warning_with_a_remedy(tmp_path: Path) -> None:
    check = link(tmp_path / "nothing", tmp_path)
    assert (check.status, check.remedy is not None) == ("warning", True)
