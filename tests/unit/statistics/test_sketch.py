"""Sketches: the kernel against the definition, their spread over many seeds, and their file."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from archaeologist.errors import ArtifactInvalid
from archaeologist.statistics import kernels
from archaeologist.statistics.sketch import (
    WIDTH,
    Sketch,
    SketchHeader,
    decode_sketch,
    differences,
    direction_cosine,
    distance,
    distances,
    encode_header,
    position_signs,
    size_of,
    splitmix64,
    tensor_key,
)

Floats = npt.NDArray[np.float64]
HEADER = SketchHeader(fingerprint="f" * 32, step=7)


def projected(values: npt.NDArray[np.float32], key: int) -> Floats:
    """The kernel's sketch of values."""
    window = np.zeros(kernels.WINDOW_SIZE, np.int64)
    window[kernels.KIND], window[kernels.REFERENCE_KIND] = kernels.F32, kernels.ABSENT
    window[kernels.KEY] = np.uint64(key).view(np.int64)
    window[kernels.SKETCHED] = kernels.PROJECTED
    sketch = np.zeros(WIDTH)
    kernels.dig(
        values.ravel().view(np.uint8),
        np.empty(0, np.uint8),
        window,
        np.zeros(kernels.SUMS_SIZE),
        np.zeros(kernels.COUNTS_SIZE, np.int64),
        np.zeros((kernels.SUB_HISTOGRAMS, kernels.BINS), np.uint32),
        np.zeros(0),
        np.zeros(0),
        sketch,
    )
    return sketch


def by_definition(values: npt.NDArray[np.float32], key: int) -> Floats:
    """The sketch, straight from the formula."""
    sketch = np.zeros(WIDTH)
    signs = position_signs()
    for block, start in enumerate(range(0, values.size, WIDTH)):
        piece = values[start : start + WIDTH].astype(np.float64)
        hashed = int(splitmix64(np.array([(key + block) % 2**64], np.uint64))[0])
        sign = -1 if hashed >> 63 else 1
        for position, value in enumerate(piece):
            sketch[(position + hashed % WIDTH) % WIDTH] += sign * signs[position] * value
    return sketch


def test_the_kernel_follows_the_definition() -> None:
    values = np.random.default_rng(1).standard_normal(3 * WIDTH + 77).astype(np.float32)
    key = tensor_key("model.layers.0.mlp.up_proj.weight")
    assert projected(values, key) == pytest.approx(by_definition(values, key), abs=1e-12)


def test_signs_and_keys_are_fixed_for_ever() -> None:
    # A change of these makes every stored sketch useless: it needs a new version.
    assert splitmix64(np.array([0], np.uint64))[0] == 0xE220A8397B1DCDAF
    assert position_signs()[:8].tolist() == [1, -1, -1, -1, 1, -1, -1, 1]
    assert tensor_key("lm_head.weight") == 0x34B5F5AD8DAABB37


def _few_columns() -> npt.NDArray[np.float32]:
    values = np.zeros((64, WIDTH), np.float32)
    values[:, [5, 6, 2000]] = np.random.default_rng(2).standard_normal((64, 3))
    return values


def _alike_columns() -> npt.NDArray[np.float32]:
    """The hardest: every block is the same."""
    values = np.zeros((64, WIDTH), np.float32)
    values[:, [5, 6, 2000]] = [1.0, 2.0, -3.0]
    return values


def _spread() -> npt.NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((64, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("make", [_few_columns, _alike_columns, _spread])
def test_the_squared_norm_is_unbiased_and_its_spread_bounded(make) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    values = make()
    true = float((values.astype(np.float64) ** 2).sum())
    keys = [tensor_key(f"tensor {number}") for number in range(600)]
    ratios = np.array([float((projected(values, key) ** 2).sum()) for key in keys]) / true
    # √(2 / WIDTH) = 2.2 % where blocks are independent of each other; equal blocks can meet exactly: at most double.
    bound = 2 * math.sqrt(2 / WIDTH)
    assert ratios.std() < bound
    assert abs(ratios.mean() - 1) < 5 * bound / math.sqrt(len(keys))


def test_cosines_of_differences_are_estimated_without_bias() -> None:
    generator = np.random.default_rng(4)
    a = generator.standard_normal((32, WIDTH)).astype(np.float32)
    b = (0.6 * a + 0.8 * generator.standard_normal((32, WIDTH))).astype(np.float32)
    true = float((a.ravel() @ b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b)))
    found = []
    for number in range(200):
        key = tensor_key(str(number))
        estimate = direction_cosine({"w": projected(a, key)}, {"w": projected(b, key)})
        assert estimate is not None
        found.append(estimate)
    assert np.mean(found) == pytest.approx(true, abs=0.005)
    assert np.std(found) < 2 / math.sqrt(WIDTH)


def test_a_difference_of_zero_has_no_direction() -> None:
    assert direction_cosine({"w": np.zeros(3)}, {"w": np.ones(3)}) is None


def test_small_tensors_compare_exactly_and_strangers_are_left_out() -> None:
    a = Sketch(header=HEADER, tensors={"w": np.array([3.0, 0.0]), "only": np.ones(1), "grew": np.ones(2)})
    b = Sketch(header=replace(HEADER, step=8), tensors={"w": np.array([0.0, 4.0]), "grew": np.ones(3)})
    assert distances(a, b) == {"w": 5}
    assert distance(a, b) == 5
    assert differences(a, b)["w"].tolist() == [3, -4]


@pytest.mark.parametrize("change", [{"version": 2}, {"seed": 1}, {"width": 8}])
def test_sketches_made_otherwise_do_not_compare(change: dict[str, int]) -> None:
    a = Sketch(header=HEADER, tensors={})
    with pytest.raises(ArtifactInvalid, match=next(iter(change))):
        distance(a, replace(a, header=replace(HEADER, **change)))


def test_a_file_gives_back_what_was_written() -> None:
    tensors = {"w": np.arange(3.0), "empty": np.zeros(0), "Größe": np.ones(2)}
    content = encode_header(HEADER, [(name, values.size) for name, values in tensors.items()])
    found = decode_sketch(content + b"".join(values.tobytes() for values in tensors.values()))
    assert found.header == HEADER
    assert {name: values.tolist() for name, values in found.tensors.items()} == {
        name: values.tolist() for name, values in tensors.items()
    }


def _document(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 20,
        _document("{}"),
        _document("[]"),
        encode_header(HEADER, [("w", 3)]) + b"\x00" * 16,
        encode_header(HEADER, [("w", 3)]).replace(b"F64", b"F32") + b"\x00" * 24,
    ],
)
def test_bytes_that_are_no_sketch_are_refused(content: bytes) -> None:
    with pytest.raises(ArtifactInvalid):
        decode_sketch(content)


def test_a_tensor_of_at_most_the_width_is_kept_whole() -> None:
    assert (size_of(0), size_of(WIDTH), size_of(WIDTH + 1)) == (0, WIDTH, WIDTH)
