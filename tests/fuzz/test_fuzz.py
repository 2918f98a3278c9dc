"""Whatever is read is taken or refused with a code: no crash, no hang, no memory that stays."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import http, intake
from tests.fuzz.decoders import answer, decoders
from tests.fuzz.running import malformed, run

INPUTS = 300
REQUESTS = 300
MESSAGES = 150
SLOWEST_SECONDS = 20.0
GROWTH_BYTES = 30_000_000

DECODERS = decoders()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        yield Path(place).resolve()


@pytest.mark.parametrize("name", DECODERS)
def test_malformed_inputs_are_answered_with_a_code(name: str) -> None:
    tally = run(name, DECODERS[name], inputs=INPUTS, seed=1)
    assert tally.shown == []
    assert (tally.inputs, tally.crashes) == (INPUTS, 0)
    assert tally.slowest_seconds < SLOWEST_SECONDS
    assert tally.growth_bytes < GROWTH_BYTES


@pytest.mark.parametrize("name", DECODERS)
@given(content=st.binary(max_size=400))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_answered_with_a_code(folder: Path, name: str, content: bytes) -> None:
    answer(DECODERS[name].ask, folder, content)


@pytest.mark.parametrize("name", DECODERS)
@given(value=JSON)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_answered_with_a_code(folder: Path, name: str, value: Any) -> None:
    # Not msgspec, which writes no infinite numbers: others do.
    answer(DECODERS[name].ask, folder, json.dumps(value).encode())


async def test_malformed_requests_are_answered_with_a_code() -> None:
    tally = await http.run(inputs=REQUESTS, seed=0)
    assert tally.shown == []
    assert tally.crashes == 0


async def test_malformed_messages_through_a_real_server_end_in_one_event_and_one_dead_letter_each(
    tmp_path: Path,
) -> None:
    tally = await intake.run(tmp_path, inputs=MESSAGES, seed=0)
    assert tally.shown == []
    assert (tally.inputs, tally.crashes) == (MESSAGES, 0)


def test_a_seed_and_a_number_give_the_same_input_again() -> None:
    name = "safetensors header"
    first, again, other = (malformed(name, DECODERS[name], seed=seed, number=7) for seed in (1, 1, 2))
    assert first == again
    assert first != other
