"""What a command writes where a person says: whole or not at all, and a folder never over another one."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from archaeologist.artifacts.store import put_in_place, remove_quietly, unwritable
from archaeologist.errors import UsageError


@contextlib.contextmanager
def whole_file(output: Path) -> Iterator[Path]:
    """A temporary file that takes the output's name at the end of the block, and is gone if the block fails.

    Raises:
        UsageError: The output is a folder.
        ArtifactUnwritable: The file system refuses.
    """
    if output.is_dir():
        msg = f"--output {str(output)!r} is a folder; name a file"
        raise UsageError(msg)
    temporary = _beside(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        put_in_place(temporary, output, superseded_folder=None)
    except OSError as error:
        raise unwritable(output, error) from error
    finally:
        remove_quietly(temporary)


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that takes the output's name at the end of the block, and is gone if the block fails.

    Raises:
        UsageError: Something lies at the output.
        ArtifactUnwritable: The file system refuses.
    """
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        msg = f"--output {str(output)!r} is there already; name another folder, or remove it first"
        raise UsageError(msg)
    temporary = _beside(output)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        # POSIX: onto an empty folder, or nothing; never over what somebody put there meanwhile.
        temporary.rename(output)
    except OSError as error:
        raise unwritable(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(output: Path) -> Path:
    return output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
