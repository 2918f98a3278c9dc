"""Writes a checkpoint's sketch tensor by tensor, so that no more than one is held.

The file is plain safetensors; its header is known before the walk, because every sketch's size is.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from archaeologist.artifacts.store import remove_quietly
from archaeologist.errors import ArtifactUnwritable
from archaeologist.excavation.tally import TensorResult
from archaeologist.files import made
from archaeologist.statistics.sketch import SketchHeader, encode_header, size_of


class SketchFile:
    """The temporary file of a sketch; a context manager that flushes it to the disk, or removes it after an error."""

    def __init__(self, path: Path, header: SketchHeader, counts: Iterable[tuple[str, int]]) -> None:
        """Writes nothing yet.

        Args:
            path: Of the temporary file.
            header: Its metadata.
            counts: Canonical name and number of values of each tensor, in the order of the walk.
        """
        self._path = path
        self._first = encode_header(header, ((name, size_of(count)) for name, count in counts))

    def __enter__(self) -> Self:
        """Makes the file.

        Raises:
            ArtifactUnwritable: The disk is full or read-only, or the folder forbidden.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = made(self._path)
            self._file.write(self._first)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def add(self, result: TensorResult) -> None:
        """Appends a tensor's sketch.

        Raises:
            ArtifactUnwritable: The disk is full.
        """
        if result.sketch is None:
            return
        try:
            self._file.write(result.sketch.astype("<f8", copy=False).tobytes())
        except OSError as error:
            raise self._unwritable(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flushes and closes the file."""
        try:
            with self._file:
                if error is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
        except OSError as failure:
            error = failure
            raise self._unwritable(failure) from failure
        finally:
            if error is not None:
                remove_quietly(self._path)

    def _unwritable(self, error: OSError) -> ArtifactUnwritable:
        msg = (
            f"sketch {str(self._path)!r} cannot be written: {error.strerror}; make room or give this user the right to"
        )
        return ArtifactUnwritable(msg)
