"""docs/messages.md tells the truth: its examples decode and its codes are all there are."""

import inspect
import re
from pathlib import Path

import msgspec
import pytest

from archaeologist import errors
from archaeologist.daemon.decoding import decode
from contracts.messages import EVENT_DATA, Event

PAGE = (Path(__file__).parents[2] / "docs" / "messages.md").read_text(encoding="utf-8")
EXAMPLES = [example.encode() for example in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


EVENTS = [example for example in EXAMPLES if b'"source": "archaeologist"' in example]


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example not in EVENTS])
def test_every_example_of_a_message_is_accepted(example: bytes) -> None:
    if b'"skill"' in example:
        subject = "skill.evaluated"
    else:
        subject = "checkpoint.saved" if b'"skills"' in example else "analysis.requested"
    decode(subject, example)


def test_there_are_examples_of_events() -> None:
    assert len(EVENTS) == 2


@pytest.mark.parametrize("example", EVENTS)
def test_the_example_of_an_event_decodes_to_its_type(example: bytes) -> None:
    event = msgspec.json.decode(example, type=Event)
    data = msgspec.convert(event.data, EVENT_DATA[event.type])
    assert set(msgspec.structs.asdict(data)) == set(event.data), "no field more or less than the type has"


def test_every_error_code_is_explained() -> None:
    classes = [found for _, found in inspect.getmembers(errors, inspect.isclass)]
    codes = {found.code for found in classes if issubclass(found, errors.ArchaeologistError)}
    explained = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) | set(
        re.findall(r"`(\w+)`", PAGE.rpartition("On the command line only:")[2])
    )
    assert explained == codes
