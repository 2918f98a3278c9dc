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


def announcement(
    folder: Path,
    *,
    hero_id: str,
    campaign_id: str,
    step: int | None,
    model_ref: str | None,
    metrics: Mapping[str, float],
    skills: Mapping[str, float],
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
        saved_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        request_id=RequestId(new_ulid()),
    )


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


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values, as many and with names as long as a message may have."""
    numbers = ((name, value) for name, value in values.items() if _is_number(value) and len(name) <= MAX_NAME_LENGTH)
    return dict(islice(((name, float(value)) for name, value in numbers if name), MAX_VALUES))


def _is_number(value: object) -> bool:
    # True and False are numbers to Python, and no metric.
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
