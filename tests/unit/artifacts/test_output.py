"""What a command writes where a person says."""

import errno
import os
from pathlib import Path

import pytest

from archaeologist.artifacts.output import whole_file
from archaeologist.errors import ArtifactUnwritable


def test_a_read_only_disk_is_what_is_told_and_not_that_cleaning_up_failed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(ArtifactUnwritable, match=r"page\.html.*Read-only"), whole_file(tmp_path / "page.html"):
        refused()
