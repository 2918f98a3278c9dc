"""The Hugging Face Trainer's callback: four lines in a training script, and every save is announced.

::

    from archaeologist.trainers.huggingface import ArchaeologistCallback

    callback = ArchaeologistCallback(hero_id="qwen3-0.6b", campaign_id="run-7", nats_url="nats://gpu-box:4222")
    trainer = Trainer(..., callbacks=[callback])

What is wrong with its arguments is raised when it is built, before training; from then on nothing is raised. It imports
nats-py, msgspec and transformers only.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from archaeologist.trainers.announcement import last_metrics
from archaeologist.trainers.announcer import CheckpointAnnouncer

log = logging.getLogger(__name__)

Skills = Mapping[str, float] | Callable[[], Mapping[str, float]]


class ArchaeologistCallback(TrainerCallback):
    """Publishes ``checkpoint.saved`` after each save, off the training thread, from rank zero only.

    Args:
        hero_id: The model in training: a plain name.
        campaign_id: This training run: a plain name.
        nats_url: The bus; ``ARCHAEOLOGIST_NATS_URL``, else the server on this machine.
        model_ref: What the model is, ``Qwen/Qwen3-0.6B`` for instance.
        skills: Scores by skill, or what returns them; read on the training thread at each save.
        skill_samples: On how many items each skill is measured: what makes a change more than noise.
        flush_seconds: How long the end of training waits for what is not delivered yet.
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
        skills: Skills | None = None,
        skill_samples: Mapping[str, int] | None = None,
        flush_seconds: float = 5.0,
        **bus: Any,
    ) -> None:
        self._skills = skills
        self._skill_samples = skill_samples
        self._announcer = CheckpointAnnouncer(
            hero_id=hero_id,
            campaign_id=campaign_id,
            nats_url=nats_url,
            model_ref=model_ref,
            flush_seconds=flush_seconds,
            **bus,
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: object) -> None:
        """Queues the announcement of ``{output_dir}/checkpoint-{global_step}``."""
        del control
        if not state.is_world_process_zero:
            return
        try:
            self._announce(args, state)
        except Exception:
            # A training run of days is worth more than any announcement.
            log.exception("the checkpoint of step %s is not announced", state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: object
    ) -> None:
        """Waits for what is on its way, and says what was not delivered."""
        del args, control
        if state.is_world_process_zero:
            self._announcer.finish()

    def _announce(self, args: TrainingArguments, state: TrainerState) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if not folder.is_dir():
            # A hyperparameter search saves elsewhere; a path that is not there would only fail later.
            log.warning("no checkpoint at %s: not announced", folder.absolute())
            return
        self._announcer.announce(
            folder,
            step=state.global_step,
            metrics=last_metrics(state.log_history),
            skills=self._scores(),
            skill_samples=self._skill_samples,
        )

    def _scores(self) -> Mapping[str, float]:
        try:
            return dict(self._skills() if callable(self._skills) else self._skills or {})
        except Exception:
            log.exception("skills() failed: the checkpoint is announced without scores")
            return {}
