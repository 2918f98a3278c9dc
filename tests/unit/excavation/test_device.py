"""Where the model runs, and what is given up when a GPU's memory is short."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from archaeologist.checkpoints.index import read_index
from archaeologist.errors import DeviceUnavailable, GpuMemoryShort
from archaeologist.excavation.forward import device
from archaeologist.excavation.forward.device import (
    FIXED_BYTES,
    Choice,
    Gpu,
    Need,
    after_failure,
    after_shortage,
    decide,
    is_shortage,
    needed_bytes,
)
from archaeologist.excavation.forward.model import Skeleton, skeleton
from archaeologist.excavation.forward.way import Way
from contracts.messages import GpuOptions
from tests.fixtures.models import loaded_whole, model, saved

GB = 10**9
GPU = Gpu(device="cuda:0", name="a GPU", total_bytes=24 * GB, free_bytes=20 * GB)
NEEDS = (Need(1024, 4 * GB), Need(512, 3 * GB), Need(64, 2 * GB))
WAITING = GpuOptions(when_full="wait")


def chosen(
    options: GpuOptions = GpuOptions(),  # noqa: B008 - frozen
    gpu: Gpu | None = GPU,
    needs: Sequence[Need] = NEEDS,
    way: Way = Way(),  # noqa: B008 - frozen
) -> Choice:
    return decide(options, gpu, needs, way=way)


def with_free(gb: float) -> Gpu:
    return replace(GPU, free_bytes=int(gb * GB))


# The share and what stays for others.


@pytest.mark.parametrize(
    ("options", "free_gb", "room_gb"),
    [
        (GpuOptions(), 20, 12),
        (GpuOptions(), 10, 7.952),
        (GpuOptions(), 1, 0),
        (GpuOptions(share=0.1), 20, 2.4),
        (GpuOptions(share=1, reserve_mb=0), 20, 20),
        (GpuOptions(share=1, reserve_mb=30_000), 24, 0),
    ],
)
def test_a_job_takes_no_more_than_its_share_and_leaves_the_reserve(
    options: GpuOptions, free_gb: float, room_gb: float
) -> None:
    assert options.room_bytes(total_bytes=24 * GB, free_bytes=int(free_gb * GB)) == int(room_gb * GB)


# The decision.


def test_a_gpu_with_room_is_taken_with_the_largest_batches() -> None:
    choice = chosen()
    assert (choice.gpu, choice.cells, choice.room_bytes, choice.steps) == (GPU, 1024, 12 * GB, ())
    assert choice.reason == "12.0 GB of a GPU may be used, 4.0 GB are needed"


def test_less_room_means_smaller_batches_and_says_so() -> None:
    choice = chosen(gpu=with_free(5.5))
    assert (choice.gpu is not None, choice.cells) == (True, 512)
    assert choice.steps == ("3.5 GB of a GPU may be used: 512 tokens a batch",)


def test_no_room_means_the_cpu_and_says_so() -> None:
    choice = chosen(gpu=with_free(3))
    assert (choice.gpu, choice.cells) == (None, None)
    assert choice.steps == ("1.0 GB of a GPU may be used, 2.0 GB are needed: the CPU",)


def test_no_room_now_means_waiting_where_the_settings_say_so() -> None:
    with pytest.raises(GpuMemoryShort, match=r"1\.0 GB of a GPU may be used, 2\.0 GB are needed .*3\.0 GB of 24\.0 GB"):
        chosen(WAITING, with_free(3))


def test_what_would_not_fit_if_the_gpu_were_empty_never_waits() -> None:
    choice = chosen(WAITING, with_free(3), [Need(1024, 13 * GB)])
    assert choice.gpu is None
    assert choice.steps[-1].endswith("13.0 GB are needed: the CPU")


@pytest.mark.parametrize("options", [GpuOptions(device="cpu"), GpuOptions(device="cpu", when_full="wait")])
def test_the_cpu_is_taken_when_it_is_set(options: GpuOptions) -> None:
    assert (chosen(options).gpu, chosen(options).steps) == (None, ())


def test_without_a_gpu_auto_is_the_cpu_and_nothing_was_given_up() -> None:
    choice = chosen(gpu=None)
    assert (choice.gpu, choice.steps, choice.reason) == (None, (), "torch sees no such GPU")


def test_a_gpu_that_nothing_runs_on_is_left_alone_and_named() -> None:
    choice = chosen(gpu=replace(GPU, trouble="no kernel image is available"))
    assert choice.gpu is None
    assert choice.steps == ("nothing runs on a GPU: no kernel image is available: the CPU",)


@pytest.mark.parametrize("gpu", [None, replace(GPU, trouble="no kernel image")])
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_insisted_on_and_not_there_is_an_error_with_the_remedy(name: str, gpu: Gpu | None) -> None:
    with pytest.raises(DeviceUnavailable, match=f"gpu.device is '{name}'.*doctor.*auto"):
        chosen(GpuOptions(device=name), gpu)


# Memory that runs out all the same.


def test_a_shortage_means_smaller_batches_then_the_cpu_each_step_in_words() -> None:
    way, said = Way(), []
    while not way.is_on_cpu:
        choice = chosen(way=way)
        said.append(choice.cells)
        way = after_shortage(choice, GpuOptions(), NEEDS)
    assert said == [1024, 512, 64]
    assert chosen(way=way).gpu is None
    assert chosen(way=way).steps == (
        "out of GPU memory at 1024 tokens a batch: 512",
        "out of GPU memory at 512 tokens a batch: 64",
        "out of GPU memory at 64 tokens a batch, the fewest: the CPU",
    )


def test_a_shortage_at_the_fewest_means_waiting_where_others_hold_memory() -> None:
    choice = chosen(WAITING, with_free(5), way=Way(cells=64))
    with pytest.raises(
        GpuMemoryShort, match=r"64 tokens a batch, the fewest, with 3\.0 GB of a GPU; tried again later"
    ):
        after_shortage(choice, WAITING, NEEDS)


def test_a_shortage_at_the_fewest_means_the_cpu_where_waiting_gives_no_more() -> None:
    choice = chosen(WAITING, with_free(24), way=Way(cells=64))
    assert after_shortage(choice, WAITING, NEEDS).is_on_cpu


@given(
    free=st.integers(0, 24 * GB),
    share=st.floats(0.01, 1),
    reserve_mb=st.integers(0, 30_000),
    when_full=st.sampled_from(["cpu", "wait"]),
    sizes=st.lists(st.integers(1, 30 * GB), min_size=1, max_size=6),
)
def test_whatever_the_numbers_the_ways_down_end_and_never_take_too_much(
    free: int, share: float, reserve_mb: int, when_full: str, sizes: list[int]
) -> None:
    options = GpuOptions(share=share, reserve_mb=reserve_mb, when_full="wait" if when_full == "wait" else "cpu")
    gpu = replace(GPU, free_bytes=free)
    needs = [Need(1024 >> number, size) for number, size in enumerate(sorted(sizes, reverse=True))]
    way, tries = Way(), 0
    try:
        while (choice := decide(options, gpu, needs, way=way)).gpu is not None:
            assert choice.room_bytes <= max(0, free - reserve_mb * 10**6)
            assert choice.room_bytes <= share * GPU.total_bytes
            assert next(need.size for need in needs if need.cells == choice.cells) <= choice.room_bytes
            way, tries = after_shortage(choice, options, needs), tries + 1
            assert len(way.steps) > len(choice.steps)
    except GpuMemoryShort:
        assert when_full == "wait"
    assert tries <= len(needs)


def test_another_failure_means_the_cpu_at_once() -> None:
    way = after_failure(chosen(WAITING), "the forward pass failed: RuntimeError: illegal address")
    assert way == Way(is_on_cpu=True, steps=("the forward pass failed: RuntimeError: illegal address: the CPU",))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError(), False),
    ],
)
def test_a_shortage_is_told_from_other_failures(error: Exception, *, expected: bool) -> None:
    assert is_shortage(error) == expected


# What is needed.


def bare(folder: Path, name: str = "llama") -> Skeleton:
    saved(model(name, seed=1), folder)
    return skeleton(folder, read_index(folder))


def test_what_is_needed_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    made = bare(tmp_path)
    # Of a block: q, k, v, o, gate, up, down and two norms; of 32 channels, 2 of 4 heads' keys, 64 neurons.
    block = 2 * (32 * 32 + 16 * 32 + 16 * 32 + 32 * 32 + 3 * 64 * 32 + 2 * 32)
    # 27 positions: four hidden states in 16 bits, and a mask of 9 by 9 for each of 3 sequences.
    held = 2 * (4 * 27 * 32 + 3 * 81)
    # In a block, as float32: what each matrix gives or takes, the wider, and two hidden states.
    working = 4 * 27 * (4 * 32 + 3 * 64 + 2 * 32)
    expected = 1.2 * (held + 2 * block + working) + FIXED_BYTES
    assert needed_bytes([made], [(3, 9)], head_positions=1) == pytest.approx(expected, abs=1)
    head = 256 * 100 * (2 + 4)
    expected = 1.2 * (held + head) + FIXED_BYTES
    assert needed_bytes([made], [(3, 9)], head_positions=256) == pytest.approx(expected, abs=1)


def test_more_is_needed_for_larger_batches_and_for_a_reference(tmp_path: Path) -> None:
    mine, theirs = bare(tmp_path / "a"), bare(tmp_path / "b")
    split, together = [(1, 90), (1, 90)], [(2, 90)]
    small = needed_bytes([mine], split, head_positions=1)
    assert small < needed_bytes([mine], together, head_positions=1)
    assert small < needed_bytes([mine, theirs], split, head_positions=1)


def test_a_model_that_is_loaded_whole_needs_room_for_all_of_it(tmp_path: Path) -> None:
    folder = saved(model("mixtral", seed=1), tmp_path)
    made = loaded_whole(folder)
    weights = sum(parameter.nbytes for parameter in made.model.parameters())
    assert needed_bytes([made], [(1, 4)], head_positions=1) > FIXED_BYTES + weights


@pytest.mark.parametrize("name", ["gpt2", "bert", "albert", "gpt_neox"])
def test_every_architecture_has_an_estimate(name: str, tmp_path: Path) -> None:
    assert needed_bytes([bare(tmp_path, name)], [(2, 8)], head_positions=256) > FIXED_BYTES


# What there is to see here.


def test_a_torch_without_cuda_sees_no_gpu_and_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_MPS_CLIENT_PRIORITY", raising=False)
    assert device.look("auto") is None
    assert device.look("cuda:3") is None
    taken = device.claim(chosen(gpu=None))
    assert taken == torch.device("cpu")
    assert device.peak_bytes(taken) is None


# With a GPU.


def test_a_gpu_is_found_with_its_memory(gpu: torch.device) -> None:
    found = device.look(str(gpu))
    assert found is not None
    assert found.trouble is None
    assert 0 < found.free_bytes <= found.total_bytes


def test_more_than_the_room_is_a_shortage_of_ours(gpu: torch.device) -> None:
    found = device.look(str(gpu))
    assert found is not None
    choice = Choice(cells=1, reason="", gpu=found, room_bytes=256 << 20)
    try:
        taken = device.claim(choice)
        with pytest.raises(RuntimeError, match=re.compile("out of memory", re.IGNORECASE)) as caught:
            torch.empty(512 << 20, dtype=torch.uint8, device=taken)
        assert is_shortage(caught.value)
        assert (device.peak_bytes(taken) or 0) <= 256 << 20
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
