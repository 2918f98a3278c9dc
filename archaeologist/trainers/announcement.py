"""What a trainer says of a saved checkpoint: ``checkpoint.saved``, built so that it decodes.

Structs do not validate when they are built, so names are checked here, and numbers that JSON or the contract refuses
are left out.
"""

import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Final

from archaeologist.errors import SettingInvalid
from contracts.messages import NAME_PATTERN, CampaignId, CheckpointSaved, HeroId, RequestId
from contracts.ulid import new_ulid

MAX_VALUES: Final = 256
MAX_NAME_LENGTH: Final = 128
MAX_TEXT_LENGTH: Final = 256
NEWEST_LOGS: Final = 1000
"""A run of days logs hundreds of thousands of entries; whatever is logged at all is among the newest of them."""
NOT_METRICS: Final = frozenset({"step"})


def announcement(
    folder: Path,
    *,
    hero_id: str,
    campaign_id: str,
    step: int | None,
    model_ref: str | None,
    metrics: Mapping[str, float],
    skills: Mapping[str, float],
    skill_samples: Mapping[str, int] | None = None,
) -> CheckpointSaved:
    """The announcement of a checkpoint that was saved just now."""
    return CheckpointSaved(
        hero_id=HeroId(hero_id),
        campaign_id=CampaignId(campaign_id),
        checkpoint_path=str(folder),
        checkpoint_step=step,
        model_ref=model_ref,
        metrics=dict(metrics),
        skills=dict(skills),
        skill_samples={name: size for name, size in (skill_samples or {}).items() if name in skills and size >= 1},
        saved_at=now_text(datetime.now(UTC)),
        request_id=RequestId(new_ulid()),
    )


def now_text(now: datetime) -> str:
    """The time as messages have it."""
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain_name(argument: str, value: object) -> str:
    """The id as it is.

    Raises:
        SettingInvalid: It is not a plain name.
    """
    if not isinstance(value, str) or not re.match(NAME_PATTERN, value):
        msg = (
            f"{argument} {value!r} is not a plain name: up to 128 letters, digits, '.', '_' and '-', beginning with a"
            " letter or digit, without '..'; choose one like 'qwen3-0.6b'"
        )
        raise SettingInvalid(msg)
    return value


def short_text(argument: str, value: str | None) -> str | None:
    """The text as it is.

    Raises:
        SettingInvalid: It is longer than a message may say.
    """
    if value is not None and len(value) > MAX_TEXT_LENGTH:
        msg = f"{argument} has {len(value)} characters, at most {MAX_TEXT_LENGTH} are allowed; shorten it"
        raise SettingInvalid(msg)
    return value


def not_negative(argument: str, seconds: float) -> float:
    """The time as it is.

    Raises:
        SettingInvalid: It is negative or not a number.
    """
    if not seconds >= 0:
        msg = f"{argument} = {seconds!r} is no time to wait; give seconds, 0 or more"
        raise SettingInvalid(msg)
    return seconds


def absolute(path: str | Path) -> Path:
    """The path from the file system's root, links not followed: path mapping knows the trainer's own names."""
    return Path(os.path.abspath(path))  # noqa: PTH100 -- resolve() follows links


def known_step(step: Any) -> int | None:
    """The step as it is.

    Raises:
        SettingInvalid: It is no whole number from 0 on.
    """
    if step is not None and (not isinstance(step, int) or isinstance(step, bool) or step < 0):
        msg = f"step {step!r} is no step; give the number of optimizer steps so far, or leave it out"
        raise SettingInvalid(msg)
    return step


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values, as many and with names as long as a message may have.

    A tensor or an array of one value, as trainers log them, counts as that value.
    """
    numbers = ((name, _number(value)) for name, value in values.items() if 0 < len(name) <= MAX_NAME_LENGTH)
    return dict(islice(((name, number) for name, number in numbers if number is not None), MAX_VALUES))


def last_metrics(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The newest value of each metric in a Hugging Face Trainer's log; finite numbers only."""
    merged: dict[str, Any] = {}
    for entry in islice(reversed(log_history), NEWEST_LOGS):
        merged = {**entry, **merged}
    return finite({name: value for name, value in merged.items() if name not in NOT_METRICS})


def _number(value: object) -> float | None:
    if getattr(value, "ndim", None) is not None and callable(item := getattr(value, "item", None)):
        try:
            value = item()
        except (RuntimeError, ValueError):
            return None  # more than one value
    # True and False are numbers to Python, and no metric.
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)
