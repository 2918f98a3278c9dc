import re
from pathlib import Path

from archaeologist.export.columns import COLUMNS, rows
from contracts.artifacts import Spectrum, TensorDrift, TensorWeights
from tests.fixtures.exports import artifact

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


def test_every_number_of_a_tensor_has_a_column() -> None:
    names = {column.name for column in COLUMNS}
    assert {f"weight_{name}" for name in TensorWeights.__struct_fields__ if name not in {"dtype", "shape"}} <= names
    assert {f"drift_{name}" for name in TensorDrift.__struct_fields__ if name != "spectrum"} <= names
    assert {f"change_{name}" for name in Spectrum.__struct_fields__} <= names


def test_every_row_has_every_column_and_no_other() -> None:
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    for step in (100, 200):
        for row in rows(artifact(step)):
            assert list(row) == names


def test_the_page_lists_every_column_with_its_type_and_unit() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    assert [(name, kind, unit.strip(), meaning.strip()) for name, kind, unit, meaning in listed] == [
        (column.name, column.kind, column.unit, column.meaning) for column in COLUMNS
    ]
