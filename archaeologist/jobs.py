"""A job's identity: what makes two requests one job.

Pure. Called by the daemon's admission and by ``api``, so that an analysis from the terminal has the key that the daemon
would give it.
"""

import hashlib
from typing import Final

import msgspec

from contracts.messages import Job, JobKey, JobOptions, JobType, Side

KEY_LENGTH: Final = 32
"""Hexadecimal digits of a key: 128 bits, far beyond any chance of two jobs meeting."""

_canonical = msgspec.json.Encoder(order="deterministic")


def job_key(
    *,
    job_type: JobType,
    hero_id: str,
    campaign_id: str,
    target: Side,
    reference: Side | None,
    options: JobOptions,
) -> JobKey:
    """The key of a job: the first 32 hexadecimal digits of a SHA-256.

    The hash covers, as JSON with sorted keys, the job type, hero and campaign, each side's path, step and fingerprint,
    and the options. It leaves out ``read_path``: pinned or read in place, a checkpoint is the same one. A checkpoint
    that was overwritten has another fingerprint, so it is another job.
    """
    identity = {
        "job_type": job_type,
        "hero_id": hero_id,
        "campaign_id": campaign_id,
        "target": _identity(target),
        "reference": _identity(reference) if reference is not None else None,
        "options": options,
    }
    return JobKey(hashlib.sha256(_canonical.encode(identity)).hexdigest()[:KEY_LENGTH])


def _identity(side: Side) -> dict[str, str | int]:
    found: dict[str, str | int] = {"path": side.path, "step": side.step, "fingerprint": side.fingerprint}
    return found if side.base_fingerprint is None else {**found, "base": side.base_fingerprint}


def as_named(text: str, job: Job) -> str:
    """A text for people: where it has the path of a pin, it gets that of the checkpoint, which is what they know."""
    for side in (job.target, job.reference):
        if side is not None:
            text = text.replace(side.read_path, side.path)
    return text
