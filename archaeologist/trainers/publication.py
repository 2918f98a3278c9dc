"""Publishing one message and knowing that the bus has it: for scripts, evaluations and notebooks.

Each function waits for the bus's confirmation, tries again while there is time, and raises when it is over. A training
loop that must go on whatever the bus does uses ``announcer`` instead.
"""

import asyncio
import os
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from archaeologist.bus.connection import connected
from archaeologist.bus.publisher import publish
from archaeologist.errors import BusUnavailable, SettingInvalid, TopologyMissing
from archaeologist.settings import BusSettings
from archaeologist.trainers.announcement import (
    absolute,
    announcement,
    finite,
    known_step,
    now_text,
    plain_name,
    short_text,
)
from archaeologist.trainers.publisher import bus_settings, remedy
from contracts import subjects
from contracts.messages import CampaignId, CheckpointSaved, HeroId, RequestId, SkillEvaluated, encode
from contracts.ulid import new_ulid

TIMEOUT_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.5


def publish_checkpoint(path: str | Path, **fields: Any) -> str:
    """Announces one checkpoint and waits until the bus has it; works within a running event loop too.

    Args:
        path: As for ``publish_checkpoint_async``.
        **fields: The same.

    Returns:
        The id of the request, for ``archaeologist jobs show``.

    Raises:
        SettingInvalid: An id is not a plain name, or a setting of the bus is wrong.
        BusUnavailable: The bus did not confirm in time.
    """
    return _awaited(publish_checkpoint_async(path, **fields))


async def publish_checkpoint_async(  # noqa: PLR0913 -- the fields of checkpoint.saved, all by keyword
    path: str | Path,
    *,
    hero_id: str,
    campaign_id: str,
    step: int | None = None,
    nats_url: str | None = None,
    model_ref: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    skills: Mapping[str, Any] | None = None,
    skill_samples: Mapping[str, int] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    **bus: Any,
) -> str:
    """Announces one checkpoint, that is saved whole, and waits until the bus has it.

    Args:
        path: The checkpoint's folder, or a single ``.safetensors`` file.
        hero_id: The model in training: a plain name.
        campaign_id: This training run: a plain name.
        step: Left out: the number in the folder's name, else in its ``trainer_state.json``.
        nats_url: The bus; ``ARCHAEOLOGIST_NATS_URL``, else the server on this machine.
        model_ref: What the model is, ``Qwen/Qwen3-0.6B`` for instance.
        metrics: Numbers by name; what is no finite number is left out.
        skills: Scores by skill, likewise.
        skill_samples: On how many items each was measured.
        timeout_seconds: How long to try.
        **bus: Fields of ``BusSettings``: ``credentials``, ``token``, ``tls_ca``, …

    Returns:
        The id of the request, for ``archaeologist jobs show``.

    Raises:
        SettingInvalid: An id is not a plain name, or a setting of the bus is wrong.
        BusUnavailable: The bus did not confirm in time.
    """
    settings = bus_settings(os.environ, url=nats_url, **bus)
    message = announcement(
        absolute(path),
        hero_id=plain_name("hero_id", hero_id),
        campaign_id=plain_name("campaign_id", campaign_id),
        step=known_step(step),
        model_ref=short_text("model_ref", model_ref),
        metrics=finite(metrics or {}),
        skills=finite(skills or {}),
        skill_samples=skill_samples,
    )
    await _confirm(
        settings, subjects.CHECKPOINT_SAVED, message, timeout_seconds=timeout_seconds, otherwise=remedy([message])
    )
    return str(message.request_id)


def publish_skill(skill: str, score: float, **fields: Any) -> str:
    """Reports one score and waits until the bus has it; works within a running event loop too.

    Args:
        skill: As for ``publish_skill_async``.
        score: The same.
        **fields: The same.

    Returns:
        The id of the message.

    Raises:
        SettingInvalid: A field is not what it must be, or a setting of the bus is wrong.
        BusUnavailable: The bus did not confirm in time.
    """
    return _awaited(publish_skill_async(skill, score, **fields))


async def publish_skill_async(  # noqa: PLR0913 -- the fields of skill.evaluated, all by keyword
    skill: str,
    score: float,
    *,
    hero_id: str,
    campaign_id: str,
    step: int,
    num_samples: int | None = None,
    level: int | None = None,
    nats_url: str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    **bus: Any,
) -> str:
    """Reports what an evaluation measured of one skill at one checkpoint, and waits until the bus has it.

    Args:
        skill: Its name.
        score: Higher is better; a share between 0 and 1 where ``num_samples`` is to mean anything.
        hero_id: The model in training: a plain name.
        campaign_id: The training run: a plain name.
        step: The checkpoint that was evaluated.
        num_samples: On how many items: what makes a change of score more than noise.
        level: The hero's level, where there is one; a rise is a level-up.
        nats_url: The bus; ``ARCHAEOLOGIST_NATS_URL``, else the server on this machine.
        timeout_seconds: How long to try.
        **bus: Fields of ``BusSettings``: ``credentials``, ``token``, ``tls_ca``, …

    Returns:
        The id of the message.

    Raises:
        SettingInvalid: A field is not what it must be, or a setting of the bus is wrong.
        BusUnavailable: The bus did not confirm in time.
    """
    settings = bus_settings(os.environ, url=nats_url, **bus)
    known = finite({skill: score})
    if skill not in known:
        msg = f"score {score!r} of skill {skill[:200]!r}: a score is a finite number, a name has 1 to 128 characters"
        raise SettingInvalid(msg)
    if num_samples is not None and known_step(num_samples) == 0:
        msg = "num_samples = 0: a score of no samples is none; leave it out where it is not known"
        raise SettingInvalid(msg)
    message = SkillEvaluated(
        hero_id=HeroId(plain_name("hero_id", hero_id)),
        campaign_id=CampaignId(plain_name("campaign_id", campaign_id)),
        checkpoint_step=known_step(step) or 0,
        skill=skill,
        score=known[skill],
        num_samples=num_samples,
        level=level,
        evaluated_at=now_text(datetime.now(UTC)),
        request_id=RequestId(new_ulid()),
    )
    await _confirm(
        settings,
        subjects.SKILL_EVALUATED,
        message,
        timeout_seconds=timeout_seconds,
        otherwise=f"the score of {skill!r} at step {step} is not reported; report it again",
    )
    return str(message.request_id)


async def _confirm(
    settings: BusSettings,
    subject: str,
    message: CheckpointSaved | SkillEvaluated,
    *,
    timeout_seconds: float,
    otherwise: str,
) -> None:
    """The same message under the same id, until the bus has it or the time is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    reason: Exception | None = None
    while (left := deadline - loop.time()) > 0:
        patient = replace(settings, connect_timeout_seconds=min(settings.connect_timeout_seconds, left))
        try:
            async with connected(patient, name="archaeologist-trainer") as bus:
                left = max(PAUSE_SECONDS, deadline - loop.time())
                await publish(bus, subject, encode(message), message_id=str(message.request_id), deadline_seconds=left)
        except (BusUnavailable, TopologyMissing) as error:
            reason = error
            await asyncio.sleep(min(PAUSE_SECONDS, max(0.0, deadline - loop.time())))
        else:
            return
    msg = f"the bus did not confirm within {timeout_seconds:g} s ({reason}): {otherwise}"
    raise BusUnavailable(msg) from reason


def _awaited(work: Coroutine[Any, Any, str]) -> str:
    """What it returns, run in a thread of its own: the caller's may have a running loop, as in a notebook."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="archaeologist-publication") as pool:
        return pool.submit(asyncio.run, work).result()
