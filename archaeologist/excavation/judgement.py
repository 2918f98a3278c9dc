"""A checkpoint judged against its campaign: earlier artifacts from the folder → readings → alerts.

Called by ``layer_stats`` once everything is computed, before the artifact is written. The rule itself is in
``statistics.collapse``; here is decided which numbers of an artifact it sees. Of the earlier artifacts only those
fields are decoded.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
from msgspec import Struct

from archaeologist.artifacts.conditions import conditions
from archaeologist.artifacts.storage import read_stored, stored
from archaeologist.errors import ArchiveUnavailable
from archaeologist.statistics import collapse
from archaeologist.statistics.collapse import Broken, Reading
from contracts.artifacts import ARTIFACT_VERSION, Alert, LayerStats, OutputStats
from contracts.prepared import prepare

NEWEST: Final = 50
"""Earlier checkpoints that are looked at: reading them must not take longer than a second."""
MAX_BYTES: Final = 64_000_000
"""Of one of them; a model with 1000 tensors makes about 2 MB."""

_NAME: Final = re.compile(r"ckpt-(\d{1,16})\.layer_stats\.json")


class Judgement(Struct, frozen=True, kw_only=True):
    """What the campaign's history says about a checkpoint."""

    alerts: tuple[Alert, ...] = ()
    warnings: tuple[str, ...] = ()
    """What the reader must know about the history."""


def judge(artifact: LayerStats, *, folders: Iterable[Path]) -> Judgement:
    """The signs of collapse in an artifact.

    Args:
        artifact: The present one, complete but for its alerts.
        folders: Where the campaign's ``layer_stats`` artifacts lie; one may be missing, and of a step that is in two
            of them the first counts. Files of other campaigns, where there is no campaign of checkpoints from another
            folder, and of steps not below the present one take no part; one that cannot be read is left out, with a
            warning.
    """
    history: list[Reading] = []
    unreadable: list[str] = []
    for path in _earlier(folders, artifact.checkpoint_step):
        try:
            found = msgspec.json.decode(read_stored(path, MAX_BYTES), type=_Health)
        except (OSError, ValueError, RecursionError, RuntimeError, ArchiveUnavailable):
            unreadable.append(path.name)
            continue
        if found.is_before(artifact):
            history.append(_reading(found))
    present = _reading(msgspec.convert(artifact, _Health, from_attributes=True))
    return Judgement(alerts=collapse.judge(present, history), warnings=_warnings(unreadable))


def _earlier(folders: Iterable[Path], step: int) -> list[Path]:
    """The artifacts of lower steps by their names, the newest ones."""
    lower: dict[int, Path] = {}
    for path in chain.from_iterable(map(_files, folders)):
        found = _NAME.fullmatch(path.name)
        if found and int(found[1]) < step:
            lower.setdefault(int(found[1]), path)
    return [lower[number] for number in sorted(lower)[-NEWEST:]]


def _files(folder: Path) -> list[Path]:
    try:
        return [folder / name for name, _ in stored(folder)]
    except OSError:
        return []


def _warnings(unreadable: list[str]) -> tuple[str, ...]:
    if not unreadable:
        return ()
    noun = "artifact is" if len(unreadable) == 1 else "artifacts are"
    left_out = f"{len(unreadable)} earlier {noun} unreadable and left out of the search for signs of collapse"
    return (f"{left_out}, {unreadable[0]} first; move it away and analyse that checkpoint again",)


# What is looked at. Names and types are those of contracts.artifacts; msgspec skips everything else.


class _Weights(Struct, frozen=True):
    layer_type: str
    l2: float | None = None
    nan_count: int = 0
    inf_count: int = 0


class _AllWeights(Struct, frozen=True):
    param_count: int = 0


class _Distribution(Struct, frozen=True):
    nan_count: int = 0
    inf_count: int = 0


class _Activations(Struct, frozen=True):
    distribution: _Distribution = _Distribution()
    first_token: _Distribution | None = None
    rankme: float | None = None
    rankme_tokens: int = 0
    anisotropy: float | None = None
    feature_variance: float | None = None

    def nonfinite(self) -> int:
        """NaN and infinite values at all positions."""
        first = self.first_token or _Distribution()
        return sum((self.distribution.nan_count, self.distribution.inf_count, first.nan_count, first.inf_count))


class _Probes(Struct, frozen=True):
    sha256: str = ""
    tokenizer_sha256: str = ""


class _Output(Struct, frozen=True):
    kl: float | None = None


class _Drift(Struct, frozen=True):
    output: _Output | None = None
    reference_output: OutputStats | None = None


class _Sampled(Struct, frozen=True):
    distinct_2: float | None = None


class _Generations(Struct, frozen=True):
    sampled: _Sampled = _Sampled()


class _Health(Struct, frozen=True, kw_only=True):
    version: int
    hero_id: str
    campaign_id: str
    checkpoint_path: str
    checkpoint_step: int
    fingerprint: str
    architecture: str | None = None
    reference_fingerprint: str | None = None
    reference_checkpoint_step: int | None = None
    weight_stats: dict[str, _Weights] = {}
    global_weight_stats: _AllWeights = _AllWeights()
    activation_stats: dict[str, _Activations] = {}
    probe_info: _Probes | None = None
    output_stats: OutputStats | None = None
    functional_drift: _Drift | None = None
    generations: _Generations | None = None

    def is_before(self, artifact: LayerStats) -> bool:
        """Whether it is an earlier checkpoint of the same campaign, in a version that means the same."""
        return (
            self.version == ARTIFACT_VERSION
            and _course(self) == _course(artifact)
            and self.checkpoint_step < artifact.checkpoint_step
        )


def _course(artifact: _Health | LayerStats) -> tuple[str, ...]:
    """What checkpoints of one training have in common: their campaign, or without one the folder that they lie in."""
    if artifact.campaign_id:
        return (artifact.hero_id, artifact.campaign_id)
    return ("", "", str(Path(artifact.checkpoint_path).parent))


def _reading(health: _Health) -> Reading:
    drift = health.functional_drift or _Drift()
    theirs = drift.reference_output
    model = (health.architecture or "", str(health.global_weight_stats.param_count))
    return Reading(
        step=health.checkpoint_step,
        fingerprint=health.fingerprint,
        probes=_probes(health),
        model=model,
        values=_values(health, drift),
        norms={name: block.l2 for name, block in health.weight_stats.items()},
        broken=tuple(_broken(health)),
        reference=health.reference_fingerprint,
        reference_step=health.reference_checkpoint_step,
        reference_values={"entropy": theirs.entropy, "loss": theirs.loss} if theirs else {},
    )


def _probes(health: _Health) -> tuple[str, ...]:
    probes = health.probe_info or _Probes()
    return conditions(
        architecture=health.architecture,
        probes=probes.sha256,
        tokenizer=probes.tokenizer_sha256,
        rankme_tokens=(block.rankme_tokens for block in health.activation_stats.values()),
    )


def _values(health: _Health, drift: _Drift) -> dict[str, float | None]:
    kinds = health.weight_stats
    blocks = [
        block
        for name, block in health.activation_stats.items()
        if name in kinds and kinds[name].layer_type == "transformer_block"
    ]
    output = health.output_stats or OutputStats()
    return {
        # The median: one odd block alarms nobody. What breaks in fewer than half of them shows in the predictions.
        "rankme": _median(block.rankme for block in blocks),
        "anisotropy": _median(block.anisotropy for block in blocks),
        "feature_variance": _median(block.feature_variance for block in blocks),
        "entropy": output.entropy,
        "loss": output.loss,
        "distinct_2": health.generations.sampled.distinct_2 if health.generations else None,
        "kl": drift.output.kl if drift.output else None,
    }


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return median(present) if present else None


def _broken(health: _Health) -> Iterable[Broken]:
    weights = {name: block.nan_count + block.inf_count for name, block in health.weight_stats.items()}
    activations = {name: block.nonfinite() for name, block in health.activation_stats.items()}
    yield from chain(
        _broken_blocks(weights, family="weights", part="weights"),
        _broken_blocks(activations, family="representation", part="activations"),
    )
    if health.output_stats and (count := health.output_stats.nonfinite_positions):
        yield Broken(family="entropy", part="predictions", count=count)


def _broken_blocks(counts: Mapping[str, int], *, family: str, part: str) -> Iterable[Broken]:
    broken = {name: count for name, count in counts.items() if count}
    if broken:
        yield Broken(family=family, part=part, count=sum(broken.values()), block=next(iter(broken)), blocks=len(broken))


prepare(__name__)
