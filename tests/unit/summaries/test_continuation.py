"""Timelines that are continued: the bytes of new ones, and only where nothing that they cover has changed."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.summaries.continuation import Coverage, Written, write_timeline
from archaeologist.summaries.extract import extract
from archaeologist.summaries.seams import Pieces
from archaeologist.summaries.table import Table
from archaeologist.summaries.timelines import alerts, drift_timeline, health_timeline
from contracts.artifacts import Alert, LeftOut
from tests.fixtures.histories import artifact, with_activations
from tests.fixtures.summaries import WHOSE
from tests.fixtures.summaries import drift_timeline as made_up_drift
from tests.fixtures.summaries import health_timeline as made_up_health

BLOCKS = ("model.embed_tokens", 'a "block"],[{', "model.läyers.1")
STEPS = (100, 200, 300, 400)
ALERT = Alert(severity="warning", family="entropy", metric="entropy", message="it falls", block=BLOCKS[1])
LEFT_OUT = LeftOut(file="x", code="y", reason="],[")


def weights(step: int, blocks: tuple[str, ...] = BLOCKS) -> dict[str, Any]:
    generator = np.random.default_rng(step)
    return {f"{block}.mlp.weight": generator.standard_normal(8) for block in blocks}


def table(*steps: int, blocks: tuple[str, ...] = BLOCKS) -> Table:
    """Every other checkpoint was compared with a reference."""
    found = []
    for step in steps:
        before = (step - 100, weights(step - 100, blocks)) if step % 200 == 0 else None
        one = replace(artifact(step, weights(step, blocks), reference=before), alerts=(ALERT,), created_at='2026"],[')
        found.append(extract(with_activations(one, std=float(step), entropy=2.0)))
    return Table(found)


def signatures(count: int) -> list[str]:
    return [f"file-{number}" for number in range(count)]


class Maker:
    """Makes a timeline, and keeps the steps that it was asked for."""

    def __init__(self, whole: Table, *, of_health: bool = False) -> None:
        self.asked: list[tuple[int, ...]] = []
        self._alerts = alerts(whole.extracts)
        self._of_health = of_health

    def __call__(self, part: Table) -> Struct:
        self.asked.append(part.steps)
        if self._of_health:
            return health_timeline(part, alerts=self._alerts, left_out=(LEFT_OUT,), **WHOSE)
        return drift_timeline(part, left_out=(LEFT_OUT,), **WHOSE)


def written(path: Path, whole: Table, files: list[str], known: Written | None, maker: Maker) -> Written:
    return write_timeline(path, maker, coverage=Coverage(whole, files), known=known)


@pytest.mark.parametrize("of_health", [False, True])
def test_the_pieces_of_a_timeline_are_its_json(*, of_health: bool) -> None:
    for whole in (table(), table(100), table(*STEPS)):
        made = Maker(whole, of_health=of_health)(whole)
        assert b"".join(Pieces.of(made).texts) == msgspec.json.encode(made)
    for made in (made_up_drift(), made_up_health()):
        assert b"".join(Pieces.of(made).texts) == msgspec.json.encode(made)


@pytest.mark.parametrize("of_health", [False, True])
@pytest.mark.parametrize("first", range(len(STEPS) + 1))
def test_a_continued_timeline_is_a_new_one_byte_for_byte(tmp_path: Path, first: int, *, of_health: bool) -> None:
    path, known = tmp_path / "timeline.json", None
    for count in range(first, len(STEPS) + 1):
        whole = table(*STEPS[:count])
        maker = Maker(whole, of_health=of_health)
        known = written(path, whole, signatures(count), known, maker)
        assert path.read_bytes() == msgspec.json.encode(Maker(whole, of_health=of_health)(whole))
        if count > max(first, 1):
            assert maker.asked == [STEPS[count - 1 : count]], "only the new checkpoint is encoded"


def test_a_file_that_somebody_else_wrote_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    known = written(path, table(*STEPS[:3]), signatures(3), None, Maker(table()))
    path.write_bytes(path.read_bytes().replace(b"100", b"101"))
    whole = table(*STEPS)
    written(path, whole, signatures(4), known, Maker(whole))
    assert path.read_bytes() == msgspec.json.encode(Maker(whole)(whole))


@pytest.mark.parametrize(
    ("whole", "files"),
    [
        (table(*STEPS), ["other", *signatures(4)[1:]]),
        (table(50, *STEPS), signatures(5)),
        (table(100, 200, 250, 300), signatures(4)),
        (table(*STEPS, blocks=(*BLOCKS, "lm_head")), signatures(4)),
        (table(*STEPS, blocks=BLOCKS[::-1]), signatures(4)),
        (table(100, 200), signatures(2)),
    ],
    ids=["analysed again", "one before", "one between", "another block", "other order", "fewer"],
)
def test_a_timeline_whose_past_changed_is_written_anew(tmp_path: Path, whole: Table, files: list[str]) -> None:
    path = tmp_path / "timeline.json"
    known = written(path, table(*STEPS[:3]), signatures(3), None, Maker(table()))
    maker = Maker(whole)
    written(path, whole, files, known, maker)
    assert maker.asked == [whole.steps]
    assert path.read_bytes() == msgspec.json.encode(Maker(whole)(whole))
