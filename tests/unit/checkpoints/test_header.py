"""Headers of safetensors files, good and hostile, held against the safetensors library itself."""

import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.checkpoints.header import DTYPE_BITS, MAX_VALUES, Header, read_header
from archaeologist.errors import CheckpointError, DtypeUnsupported, HeaderInvalid
from archaeologist.files import opened
from tests.fixtures.checkpoints import safetensors_bytes

library_read: Callable[[bytes], object] = safetensors.deserialize


def header_of(content: bytes) -> Header:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.safetensors"
        file.write_bytes(content)
        with opened(file) as descriptor:
            return read_header(descriptor, file="x.safetensors", size=len(content))


def tensor(begin: int, end: int, *, dtype: Any = "F32", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def refusal(content: bytes) -> str:
    with pytest.raises(HeaderInvalid) as caught:
        header_of(content)
    message = str(caught.value)
    assert caught.value.code == "header_invalid"
    assert message.startswith("safetensors file 'x.safetensors': ")
    assert message.endswith("; save the checkpoint again or copy it whole")
    return message


def test_tensors_come_in_the_order_of_their_bytes_with_offsets_within_the_file() -> None:
    content = safetensors_bytes({"b": tensor(8, 16), "a": tensor(0, 8), "__metadata__": {"format": "pt"}}, bytes(16))
    data = len(content) - 16
    assert [(stored.name, stored.offset, stored.size) for stored in header_of(content).tensors] == [
        ("a", data, 8),
        ("b", data + 8, 8),
    ]


def test_scalars_and_tensors_without_elements_are_allowed_anywhere() -> None:
    described = {"none": tensor(4, 4, shape=[0, 3]), "scalar": tensor(0, 4, shape=[]), "end": tensor(4, 4, shape=[0])}
    assert {stored.name: stored.size for stored in header_of(safetensors_bytes(described, bytes(4))).tensors} == {
        "scalar": 4,
        "none": 0,
        "end": 0,
    }


def test_trailing_spaces_pad_a_header() -> None:
    raw = json.dumps({"a": tensor(0, 4)}).encode() + b"      "
    assert len(header_of(safetensors_bytes(raw, bytes(4))).tensors) == 1


def test_every_dtype_of_the_library_is_known() -> None:
    # The library names the dtypes it knows when it meets one that it does not.
    with pytest.raises(safetensors.SafetensorError) as caught:
        library_read(safetensors_bytes({"a": tensor(0, 4, dtype="F5")}, bytes(4)))
    named = {word.strip("`,") for word in str(caught.value).split() if word.startswith("`")}
    assert named - {"F5"} == set(DTYPE_BITS)


def test_an_empty_file_is_truncated() -> None:
    assert "0 bytes, a file begins with 8 bytes of header length: it is truncated" in refusal(b"")


def test_a_length_beyond_the_file_is_truncated() -> None:
    assert "header of 1000 bytes in a file of 10 bytes" in refusal(safetensors_bytes(b"{}", length=1000))


def test_a_length_of_two_to_the_63_is_refused_without_reading_it() -> None:
    message = refusal(safetensors_bytes(b"{}", length=2**63))
    assert f"header of {2**63} bytes, at most 32000000 are read" in message


def test_a_header_one_byte_over_the_limit_is_refused() -> None:
    assert "at most 32000000 are read" in refusal(safetensors_bytes(b"{}", length=32_000_001))


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe", b"nonsense", b'{"a": NaN}', b"{} x", b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5000]
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    assert "its header is" in refusal(safetensors_bytes(raw))


@pytest.mark.parametrize("header", [[], 1, "a", None, True])
def test_json_that_is_not_an_object_is_refused(header: object) -> None:
    assert "not a JSON object" in refusal(safetensors_bytes(header))


def test_a_name_that_stands_twice_is_refused_and_named() -> None:
    one = json.dumps(tensor(0, 4))
    raw = f'{{"model.norm.weight": {one}, "model.norm.weight": {one}}}'.encode()
    assert "name 'model.norm.weight' is there twice, it stands once" in refusal(safetensors_bytes(raw, bytes(4)))


def test_a_field_that_stands_twice_is_refused() -> None:
    raw = b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}'
    assert "name 'dtype' is there twice" in refusal(safetensors_bytes(raw, bytes(4)))


def test_tensors_that_overlap_are_refused() -> None:
    message = refusal(safetensors_bytes({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)))
    assert "tensor 'b' begins at byte 4 of the data and overlaps the one before, it must begin at 8" in message


def test_a_hole_between_tensors_is_refused() -> None:
    message = refusal(safetensors_bytes({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)))
    assert "tensor 'b' begins at byte 8 of the data and leaves a hole before it, it must begin at 4" in message


def test_a_hole_before_the_first_tensor_is_refused() -> None:
    assert "leaves a hole before it, it must begin at 0" in refusal(safetensors_bytes({"a": tensor(4, 8)}, bytes(8)))


def test_data_cut_short_is_refused_as_truncated() -> None:
    message = refusal(safetensors_bytes({"a": tensor(0, 8)}, bytes(7)))
    assert "tensors of 8 bytes with 7 bytes of data, they must be equal: it is truncated" in message


def test_data_behind_the_last_tensor_is_refused() -> None:
    assert "tensors of 4 bytes with 5 bytes of data, they must be equal;" in refusal(
        safetensors_bytes({"a": tensor(0, 4)}, bytes(5))
    )


def test_a_size_that_is_not_shape_times_dtype_is_refused() -> None:
    message = refusal(safetensors_bytes({"a": tensor(0, 8, shape=[3])}, bytes(8)))
    assert "tensor 'a' has 8 bytes, its shape [3] has 3 values of 32 bits each" in message


@pytest.mark.parametrize("shape", [[-1], [1.0], [True], ["1"], None, {}, 1, [2**63], [1] * 65])
def test_a_shape_is_a_list_of_up_to_64_sizes(shape: object) -> None:
    described = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
    assert "a shape is up to 64 integers from 0" in refusal(safetensors_bytes({"a": described}, bytes(4)))


@pytest.mark.parametrize("shape", [[0, 2**62, 2**62], [2**62, 0, 2**62], [2**40, 2**40]])
def test_a_shape_whose_product_overflows_is_refused(shape: list[int]) -> None:
    assert "a shape has up to 9223372036854775807 values" in refusal(
        safetensors_bytes({"a": tensor(0, 0, shape=shape)})
    )


@pytest.mark.parametrize(
    "offsets", [[4, 0], [-4, 0], [0], [0, 4, 8], None, [0.0, 4.0], [0, 2**64], ["0", "4"], [False, 4]]
)
def test_offsets_are_a_begin_and_an_end(offsets: object) -> None:
    described = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
    assert "they are a begin and an end not before it" in refusal(safetensors_bytes({"a": described}, bytes(4)))


@pytest.mark.parametrize("described", [None, [], 4, {"dtype": "F32"}, {"shape": [1], "data_offsets": [0, 4]}])
def test_a_tensor_needs_dtype_shape_and_offsets(described: object) -> None:
    assert "it needs dtype, shape and data_offsets" in refusal(safetensors_bytes({"a": described}, bytes(4)))


@pytest.mark.parametrize("dtype", ["F128", "f32", "", 32, None, ["F32"]])
def test_a_dtype_outside_the_format_is_named_with_its_tensor_and_the_known_ones(dtype: object) -> None:
    with pytest.raises(DtypeUnsupported) as caught:
        header_of(safetensors_bytes({"a.weight": tensor(0, 4, dtype=dtype)}, bytes(4)))
    message = str(caught.value)
    assert caught.value.code == "dtype_unsupported"
    assert f"tensor 'a.weight' has dtype {dtype!r}" in message
    assert "BF16" in message


def test_half_a_surrogate_pair_in_a_name_is_refused() -> None:
    message = refusal(safetensors_bytes(json.dumps({"\ud800": tensor(0, 4)}).encode(), bytes(4)))
    assert r"tensor '\ud800' has half a surrogate pair in its name" in message
    message.encode()


def test_an_endless_name_is_refused_and_cut_in_the_message() -> None:
    message = refusal(safetensors_bytes({"a" * 100_000: tensor(0, 4)}, bytes(4)))
    assert "has a name of 100000 characters, at most 1024 are read" in message
    assert len(message) < 500


@pytest.mark.parametrize("metadata", [[], {"a": 1}, {"a": {}}, "pt", None])
def test_metadata_maps_names_to_texts(metadata: object) -> None:
    assert "it maps names to texts" in refusal(safetensors_bytes({"__metadata__": metadata}))


def test_a_header_of_millions_of_values_is_refused_before_memory_is_spent() -> None:
    raw = b'{"a": [' + b"[]," * MAX_VALUES + b"[]]}"
    tracemalloc.start()
    try:
        message = refusal(safetensors_bytes(raw))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "JSON values, at most 2000000 are read" in message
    assert peak_bytes < 8 * len(raw)


def test_the_digest_follows_the_headers_bytes() -> None:
    one = safetensors_bytes(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4))
    spaced = safetensors_bytes(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}} ', bytes(4))
    assert header_of(one) == header_of(one)
    assert header_of(one).digest != header_of(spaced).digest


def outcome(content: bytes) -> bool:
    """Whether our reader takes the file; anything but a checkpoint's error fails the test."""
    try:
        header_of(content)
    except CheckpointError:
        return False
    return True


def library_takes(content: bytes) -> bool:
    try:
        library_read(content)
    except safetensors.SafetensorError:
        return False
    return True


SIZES = st.integers(-1, 4)
TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F64", "BOOL", "F4", "F8_E4M3", "X"]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(st.integers(-1, 16), min_size=1, max_size=3),
    },
    optional={"more": st.none()},
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_with_a_code(content: bytes) -> None:
    assert outcome(content) <= library_takes(content)


@given(st.binary(max_size=200), st.binary(max_size=16))
def test_any_bytes_as_a_header_are_read_or_refused_with_a_code(raw: bytes, data: bytes) -> None:
    content = safetensors_bytes(raw, data)
    assert outcome(content) <= library_takes(content)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), JSON | TENSORS, max_size=3), st.integers(0, 16))
def test_any_json_as_a_header_is_read_or_refused_with_a_code(header: dict[str, Any], size: int) -> None:
    content = safetensors_bytes(header, bytes(size))
    assert outcome(content) <= library_takes(content)


@st.composite
def nearly_valid(draw: st.DrawFn) -> bytes:
    """Tensors one after the other, and now and then one number that is wrong."""
    position = 0
    described: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True)):
        dtype = draw(st.sampled_from(["F32", "BF16", "F16", "I64", "BOOL"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        end = position + safetensors_size(dtype, shape)
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    is_broken: bool = draw(st.booleans())
    if is_broken and described:
        broken = described[draw(st.sampled_from(sorted(described)))]
        broken["data_offsets"][draw(st.integers(0, 1))] += draw(st.integers(-4, 4))
    return safetensors_bytes(described, bytes(max(0, position + draw(st.sampled_from([0, 0, 0, -1, 1])))))


def safetensors_size(dtype: str, shape: list[int]) -> int:
    values = 1
    for size in shape:
        values *= size
    return values * DTYPE_BITS[dtype] // 8


@given(nearly_valid())
def test_we_take_exactly_the_files_that_the_library_takes(content: bytes) -> None:
    assert outcome(content) == library_takes(content)
