"""Announcing checkpoints from within a training loop: a call that returns at once and never raises.

::

    with CheckpointAnnouncer(hero_id="qwen3-0.6b", campaign_id="run-7", nats_url="nats://gpu-box:4222") as announcer:
        ...
        announcer.announce(folder, step=step, metrics={"loss": loss})  # after each save, on rank 0 only

The callbacks are made of it. Whoever wants to know that the bus has the message uses ``publication`` instead.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from archaeologist.trainers.announcement import (
    absolute,
    announcement,
    finite,
    known_step,
    not_negative,
    plain_name,
    short_text,
)
from archaeologist.trainers.publisher import CheckpointPublisher, bus_settings

log = logging.getLogger(__name__)


class CheckpointAnnouncer:
    """Publishes ``checkpoint.saved`` off the training thread, for one training run.

    Args:
        hero_id: The model in training: a plain name.
        campaign_id: This training run: a plain name.
        nats_url: The bus; ``ARCHAEOLOGIST_NATS_URL``, else the server on this machine.
        model_ref: What the model is, ``Qwen/Qwen3-0.6B`` for instance.
        flush_seconds: How long ``finish`` waits for what is not delivered yet.
        **bus: Fields of ``BusSettings``: ``credentials``, ``token``, ``tls_ca``, …

    Raises:
        SettingInvalid: An id is not a plain name, or a setting of the bus is wrong.
    """

    def __init__(
        self,
        *,
        hero_id: str,
        campaign_id: str,
        nats_url: str | None = None,
        model_ref: str | None = None,
        flush_seconds: float = 5.0,
        **bus: Any,
    ) -> None:
        self._hero_id = plain_name("hero_id", hero_id)
        self._campaign_id = plain_name("campaign_id", campaign_id)
        self._model_ref = short_text("model_ref", model_ref)
        self._flush_seconds = not_negative("flush_seconds", flush_seconds)
        self.publisher = CheckpointPublisher(bus_settings(os.environ, url=nats_url, **bus))

    def announce(
        self,
        folder: str | Path,
        *,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        skills: Mapping[str, Any] | None = None,
        skill_samples: Mapping[str, int] | None = None,
    ) -> None:
        """Queues the announcement of a checkpoint that was just saved, whole; what goes wrong is logged.

        Args:
            folder: The checkpoint's folder, or a single ``.safetensors`` file.
            step: Left out: the number in the folder's name, else in its ``trainer_state.json``.
            metrics: Numbers by name; what is no finite number is left out.
            skills: Scores by skill, likewise.
            skill_samples: On how many items each was measured.
        """
        try:
            message = announcement(
                absolute(folder),
                hero_id=self._hero_id,
                campaign_id=self._campaign_id,
                step=known_step(step),
                model_ref=self._model_ref,
                metrics=finite(metrics or {}),
                skills=finite(skills or {}),
                skill_samples=skill_samples,
            )
            self.publisher.put(message)
        except Exception:
            # A training run of days is worth more than any announcement.
            log.exception("the checkpoint %s is not announced", folder)

    def finish(self) -> None:
        """Waits ``flush_seconds`` at most for what is on its way, and says what was not delivered."""
        self.publisher.finish(self._flush_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()
