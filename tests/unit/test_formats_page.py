"""docs/formats.md: every row names a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_row_of_the_table_of_formats_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    table = page.partition("|---|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert table
    for row in table:
        file, test = re.fullmatch(r"\| .* \| `(tests/[\w/]+\.py)::(test_\w+)` \|", row).groups()  # type: ignore[union-attr]
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), row
