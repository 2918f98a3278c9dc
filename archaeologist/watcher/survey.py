"""One look over a watched folder: which checkpoints are new and whole, and what is said of each.

Blocking file work without the bus. What is said of a checkpoint depends on what lies on the disk alone, so that the
same checkpoint gives the same message, with the same id, whoever finds it and how often.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from archaeologist.checkpoints.fingerprint import fingerprint
from archaeologist.checkpoints.header import is_unicode
from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.layout import WEIGHT_SUFFIXES
from archaeologist.checkpoints.readiness import Look, Mark, Stillness, is_ready, look, marks_of
from archaeologist.checkpoints.steps import MAX_TRAINER_STATE_BYTES, TRAINER_STATE, step_of
from archaeologist.errors import CheckpointError, PathOutsideRoot
from archaeologist.files import read_bounded
from archaeologist.trainers.announcement import announcement, last_metrics, now_text
from archaeologist.watcher.ledger import Ledger
from contracts.messages import CheckpointSaved, RequestId, encode
from contracts.prepared import prepare
from contracts.ulid import ulid_from

log = structlog.get_logger(__name__)

COMPLAIN_AFTER_SECONDS: Final = 60.0
"""A checkpoint that has not changed for so long and is not whole is told once."""

_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_STEP: Final = re.compile(r"step[^0-9A-Za-z]?([0-9]{1,15})", re.IGNORECASE)
"""Lightning's ``epoch=2-step=140-v1.ckpt``: the last number need not be it."""


class Rules(Struct, frozen=True, kw_only=True):
    """What is a checkpoint here, and when it is whole."""

    folder: Path
    """Absolute."""
    pattern: str = "checkpoint-*"
    """Of names directly in the folder."""
    quiet_seconds: float = 5.0
    allowed: tuple[Path, ...] = ()


class Found(NamedTuple):
    """A checkpoint that is whole, and not known with this content."""

    name: str
    fingerprint: str
    message: CheckpointSaved


class Survey:
    """Looks over a folder again and again and remembers what it need not look at.

    Args:
        rules: What to look for.
        known: Fingerprints of what was announced, by name.
    """

    def __init__(self, rules: Rules, known: dict[str, str]) -> None:
        self._rules = rules
        self._known = dict(known)
        self._settled: dict[str, tuple[Mark, ...]] = {}
        self._still: dict[str, Stillness] = {}
        self._told: dict[str, tuple[Mark, ...]] = {}
        self.unsettled: dict[str, float] = {}
        """Checkpoints that are not whole yet: for how many seconds nothing of each has changed."""
        self._lacking: dict[str, CheckpointError | PathOutsideRoot] = {}

    @property
    def present(self) -> dict[str, tuple[Mark, ...]]:
        """Checkpoints that are there and need no further look."""
        return dict(self._settled)

    def look(self, ledger: Ledger) -> Iterator[Found]:
        """Each checkpoint that is new and whole, the lowest step first.

        Args:
            ledger: Names hero and campaign.
        """
        paths = {path.name: path for path in candidates(self._rules)}
        for memory in (self._settled, self._still, self._told):
            for name in memory.keys() - paths.keys():
                del memory[name]
        self.unsettled, self._lacking = {}, {}
        for name, path in paths.items():
            if is_unicode(name):
                if found := self._examine(name, path, ledger):
                    yield found
            elif name not in self._told:
                self._told[name] = ()
                log.warning("not announced: its name is no Unicode text, which a message is", checkpoint=name)

    def _examine(self, name: str, path: Path, ledger: Ledger) -> Found | None:
        try:
            if self._settled.get(name) == marks_of(path):
                return None
            seen = look(path, allowed=self._rules.allowed)
            still = self._still.setdefault(name, Stillness()).seconds(seen.marks, now=time.monotonic())
            if not is_ready(seen, still_seconds=still, quiet_seconds=self._rules.quiet_seconds):
                self.unsettled[name] = still
                if seen.lacking is not None:
                    self._lacking[name] = seen.lacking
                self._complain(name, seen, still)
                return None
            step = step_in(path)
            if step is None:
                self._settled[name] = seen.marks
                log.warning("not announced: no step in its name or trainer_state.json", checkpoint=str(path))
                return None
            mark = fingerprint(read_index(path, allowed=self._rules.allowed))
        except (CheckpointError, PathOutsideRoot):
            # Deleted or changed under our eyes: the next look sees what became of it.
            self.unsettled[name] = 0.0
            return None
        self._settled[name] = seen.marks
        if self._known.get(name) == mark:
            return None
        self._known[name] = mark
        return Found(name, mark, message_of(path, step, marks=seen.marks, ledger=ledger))

    def _complain(self, name: str, seen: Look, still: float) -> None:
        if still >= COMPLAIN_AFTER_SECONDS and seen.lacking is not None and self._told.get(name) != seen.marks:
            self._told[name] = seen.marks
            _tell(name, seen.lacking)

    def tell_lacking(self) -> int:
        """Tells each checkpoint that the newest look found not whole, with what it lacks; how many they are."""
        for name, error in self._lacking.items():
            _tell(name, error)
        return len(self._lacking)


def _tell(name: str, error: CheckpointError | PathOutsideRoot) -> None:
    log.warning("not announced: not whole", checkpoint=name, code=error.code, reason=str(error))


def candidates(rules: Rules) -> list[Path]:
    """What may be a checkpoint, by step and name; none where the folder is not there."""
    try:
        names = [entry.name for entry in rules.folder.iterdir() if fnmatchcase(entry.name, rules.pattern)]
    except OSError:
        return []
    paths = [rules.folder / name for name in names]
    kept = [path for path in paths if path.is_dir() or path.suffix in WEIGHT_SUFFIXES]
    return sorted(kept, key=lambda path: (_number_in(path.name) or 0, path.name))


def step_in(path: Path) -> int | None:
    """A checkpoint's step: as everywhere else, or what its name calls so, or the last number in there."""
    known = step_of(path) if path.is_dir() else None
    return _number_in(path.name) if known is None else known


def message_of(path: Path, step: int, *, marks: tuple[Mark, ...], ledger: Ledger) -> CheckpointSaved:
    """What is said of a checkpoint: from the disk alone, so that it is the same each time."""
    saved_ns = max((mark.modified_ns for mark in marks), default=0)
    message = replace(
        announcement(
            path,
            hero_id=ledger.hero_id,
            campaign_id=ledger.campaign_id,
            step=step,
            model_ref=None,
            metrics=_metrics(path),
            skills={},
        ),
        saved_at=now_text(datetime.fromtimestamp(saved_ns / 1e9, UTC)),
        request_id=None,
    )
    # Of its own content: the same message has the same id, and no id ever stands for two messages.
    digest = hashlib.sha256(encode(message)).hexdigest()
    return replace(message, request_id=RequestId(ulid_from(saved_ns // 1_000_000, digest)))


class _TrainerState(Struct, frozen=True):
    log_history: list[dict[str, Any]] = []


def _metrics(path: Path) -> dict[str, float]:
    """What a Hugging Face Trainer logged, where it is one's checkpoint."""
    try:
        raw = read_bounded(path / TRAINER_STATE, MAX_TRAINER_STATE_BYTES)
        return last_metrics(msgspec.json.decode(raw, type=_TrainerState).log_history)
    except (OSError, ValueError, RecursionError):
        return {}


def _number_in(name: str) -> int | None:
    if match := _STEP.search(name):
        return int(match[1])
    numbers = _NUMBER.findall(name)
    return int(numbers[-1]) if numbers else None


prepare(__name__)
