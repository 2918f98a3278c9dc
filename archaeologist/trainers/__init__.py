"""The trainer's side: announces saved checkpoints and measured scores on the bus.

::

    from archaeologist.trainers import publish_checkpoint

    publish_checkpoint("out/checkpoint-500", hero_id="qwen3-0.6b", campaign_id="run-7", metrics={"eval_loss": 1.9})

The Hugging Face Trainer's callback is in ``huggingface``, because it alone imports transformers.
"""

from archaeologist.trainers.announcer import CheckpointAnnouncer
from archaeologist.trainers.publication import (
    publish_checkpoint,
    publish_checkpoint_async,
    publish_skill,
    publish_skill_async,
)

__all__ = [
    "CheckpointAnnouncer",
    "publish_checkpoint",
    "publish_checkpoint_async",
    "publish_skill",
    "publish_skill_async",
]
