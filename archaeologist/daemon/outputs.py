"""What jobs' processes printed, kept by job: a file each under the state folder, the newest of them."""

import contextlib
from pathlib import Path
from typing import Final

import structlog

from archaeologist.settings import Settings

log = structlog.get_logger(__name__)

MAX_KEPT: Final = 500


def output_path(settings: Settings, job_key: str) -> Path:
    """Where the end of what a job's last process printed lies, if it printed anything."""
    return settings.state_path / "logs" / f"{job_key}.log"


def keep_output(path: Path, tail: bytes) -> None:
    """Keeps the end of what a process printed; nothing takes the place of what an earlier one printed. Blocking.

    It is for people: that it cannot be kept ends no job.
    """
    try:
        if not tail:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(tail)
        temporary.replace(path)
        _thin(path.parent)
    except OSError as error:
        log.warning("what the job printed is not kept", path=str(path), reason=str(error))


def _thin(folder: Path) -> None:
    files = [(file.stat().st_mtime, file) for file in folder.glob("*.log")]
    for _, file in sorted(files, reverse=True)[MAX_KEPT:]:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
