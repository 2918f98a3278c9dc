"""docs/security.md names tests; each of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"


def named() -> list[tuple[str, str]]:
    """File and name of each test that the page names."""
    return re.findall(r"(tests/[a-z_/]+\.py)::(test_\w+)", PAGE.read_text(encoding="utf-8"))


def test_every_threat_has_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert all("::test_" in row for row in rows)


def test_every_test_that_is_named_exists() -> None:
    missing = [
        f"{file}::{name}"
        for file, name in named()
        if not re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []
