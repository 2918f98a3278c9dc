"""Signs of collapse: one checkpoint's health readings judged against the campaign's earlier ones. Pure.

A model collapses when its hidden states, its predictions or both lose their variety. No single number proves it: RankMe
rises and falls in healthy training (arXiv 2509.23024), entropy falls in healthy reinforcement learning (arXiv
2505.22617). So nothing is measured against an absolute value. What counts is a sudden departure from the campaign's own
history, in the direction of collapse, and above all in two families of metrics that do not follow from each other.

The rule, its constants and what it cannot see are in docs/statistics.md, "Signs of collapse". Which numbers of an
artifact become readings is decided in ``excavation.judgement``.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from contracts.artifacts import Alert

FEWEST: Final = 5
"""Earlier values that a median and its spread need; with fewer, only the reference is compared. [judgement]"""
CRITICAL_Z: Final = 4.0
"""Robust z beyond which a metric of a family departs from its history. [judgement]"""
WEIGHTS_Z: Final = 5.0
"""The same for a block's norm: there are dozens of blocks, so chance has dozens of tries. [judgement]"""
LEAST_SHARE: Final = 0.25
"""How far off its baseline a metric must be as well: a quiet history makes any change stand out. [judgement]"""
FAMILIES_FOR_CRITICAL: Final = 2
"""Independent families that must depart together. [judgement]"""
LEAST_SPREAD: Final = 1 / 256
"""The spread of a history is at least this share of its median: the resolution of bfloat16. [judgement]"""
LEAST_KL_NATS: Final = 0.05
"""A divergence that rises by less has changed predictions by too little to matter, however quiet it was. [judgement]"""
NO_KL_NATS: Final = 1e-3
"""Divergences up to this one count as the same: rounding. [judgement]"""

WORSE_LOSS: Final = 0.1
"""By how much the loss must exceed the best checkpoint's before a slow slide away from it is one. [judgement]"""

_MAD_TO_SIGMA: Final = 1.4826
"""From the median absolute deviation of a normal distribution to its standard deviation."""
_MANY: Final = 10

Confidence = Literal["low", "normal"]


class Broken(Struct, frozen=True, kw_only=True):
    """Values that are NaN or infinite, in one part of the model."""

    family: str
    part: str
    """In words: weights, activations, predictions."""
    count: int
    block: str | None = None
    """The first one, in the order of the forward pass."""
    blocks: int = 0
    """How many blocks have some."""


class Reading(Struct, frozen=True, kw_only=True):
    """The health of one checkpoint. A value that is None or absent takes no part."""

    step: int
    fingerprint: str = ""
    probes: tuple[str, ...] = ()
    """What ``values`` depend on beside the weights; only readings with the same are compared."""
    model: tuple[str, ...] = ()
    """What ``norms`` depend on beside the weights, likewise."""
    values: dict[str, float | None] = {}
    """By metric: those of ``METRICS``, and ``loss``."""
    norms: dict[str, float | None] = {}
    """L2 norm of each block's weights."""
    broken: tuple[Broken, ...] = ()
    reference: str | None = None
    """Fingerprint of the checkpoint that ``kl`` is measured to."""
    reference_step: int | None = None
    reference_values: dict[str, float | None] = {}
    """The reference's own ``entropy`` and ``loss`` on the same probes."""


class Metric(Struct, frozen=True, kw_only=True):
    """A number in which collapse shows."""

    family: str
    words: str
    limit: float | None
    """Where it ends in a collapse; None: it rises without end."""


METRICS: Final[dict[str, Metric]] = {
    "rankme": Metric(family="representation", words="RankMe (median over the transformer blocks)", limit=0),
    "anisotropy": Metric(family="representation", words="Anisotropy (median over the transformer blocks)", limit=1),
    "feature_variance": Metric(
        family="representation", words="Feature variance (median over the transformer blocks)", limit=0
    ),
    "entropy": Metric(family="entropy", words="Entropy of the next token in nats", limit=0),
    "distinct_2": Metric(family="repetition", words="distinct-2 of sampled texts", limit=0),
    "kl": Metric(family="divergence", words="KL divergence from the reference in nats", limit=None),
}


class Departure(Struct, frozen=True, kw_only=True):
    """A metric that is off its baseline in the direction of collapse."""

    metric: str
    value: float
    baseline: float
    checkpoints: int
    against: str
    """What the baseline is, in words."""
    z: float | None = None
    """None: compared with one checkpoint, not with a history."""

    @property
    def family(self) -> str:
        """The metric's family."""
        return METRICS[self.metric].family

    @property
    def confidence(self) -> Confidence:
        """Low where it was compared with one checkpoint only."""
        return "low" if self.z is None else "normal"

    @property
    def share(self) -> float:
        """How much of the way from the baseline to collapse is behind it; without an end, its rise."""
        return _share(METRICS[self.metric], self.value, self.baseline)


def judge(present: Reading, history: Iterable[Reading]) -> tuple[Alert, ...]:
    """The alerts for a checkpoint, critical ones first: at most one a family, and one a broken part.

    Args:
        present: The checkpoint.
        history: Earlier checkpoints of the campaign, in any order; what cannot be compared is left out here.
    """
    earlier = sorted((reading for reading in history if reading.step < present.step), key=lambda found: found.step)
    alerts = [
        *_broken(present, len(earlier)),
        *_collapsing(present, [reading for reading in earlier if reading.probes == present.probes]),
        *_jumping(present, [reading for reading in earlier if reading.model == present.model]),
    ]
    return tuple(sorted(alerts, key=lambda alert: alert.severity != "critical"))


def robust_z(value: float, history: Sequence[float], *, least_spread: float | None = None) -> float:
    """Distance from the history's median in robust standard deviations, signed.

    The spread is 1.4826 times the median absolute deviation, but never less than ``least_spread``; where it is 0,
    anything but the median is infinitely far.

    Args:
        value: Finite.
        history: Finite, at least one.
        least_spread: None: the share ``LEAST_SPREAD`` of the median's magnitude.
    """
    middle = median(history)
    spread = _MAD_TO_SIGMA * median(abs(earlier - middle) for earlier in history)
    scale = max(spread, LEAST_SPREAD * abs(middle) if least_spread is None else least_spread)
    distance = value - middle
    if scale == 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / scale


# NaN and infinity.


def _broken(present: Reading, checkpoints: int) -> list[Alert]:
    return [
        Alert(
            severity="critical",
            family=broken.family,
            metric="nonfinite",
            block=broken.block,
            value=float(broken.count),
            baseline=0.0,
            checkpoints=checkpoints,
            message=_broken_message(broken),
        )
        for broken in present.broken
    ]


def _broken_message(broken: Broken) -> str:
    where = f", first in {broken.block}" if broken.block else ""
    blocks = f" ({broken.blocks} blocks have some)" if broken.blocks > 1 else ""
    return (
        f"{broken.count} NaN or infinite {broken.part}{where}{blocks}. No history is needed to judge this: a healthy"
        " model has none. It is a sign of a diverged run or a damaged file; look at the loss and at the checkpoint"
        " before."
    )


# Collapse.


def _collapsing(present: Reading, earlier: Sequence[Reading]) -> list[Alert]:
    """The signs of collapse that are news: a warning that stays as it was one checkpoint before is not repeated."""
    signs = _signs(present, earlier)
    if not earlier:
        return signs
    last = earlier[-1]
    told = {sign.family: sign for sign in _signs(last, earlier[:-1])}
    return [
        sign
        for sign in signs
        if sign.severity == "critical"
        or sign.family not in told
        or (sign.confidence, told[sign.family].confidence) == ("normal", "low")
        or _went_on(sign.metric, present, last)
    ]


def _went_on(name: str, present: Reading, last: Reading) -> bool:
    value, before = _finite(present.values.get(name)), _finite(last.values.get(name))
    return value is not None and (before is None or _is_far(name, value, before))


def _signs(present: Reading, earlier: Sequence[Reading]) -> list[Alert]:
    found, support = departures(present, earlier), ""
    if len(_families(found)) < FAMILIES_FOR_CRITICAL:
        before = _families(departures(earlier[-1], earlier[:-1])) if earlier else set()
        found = [departure for departure in found if departure.family in before]
        support = "so it was one checkpoint before"
    if not found:
        found, support = slide(present, earlier), "the loss on the probes grew as well"
    families = _families(found)
    certain = _families(departure for departure in found if departure.confidence == "normal")
    is_critical = len(certain) >= FAMILIES_FOR_CRITICAL
    return [
        _collapse_alert(
            departure,
            severity="critical" if is_critical and departure.confidence == "normal" else "warning",
            support=_together(families - {departure.family}) or support,
        )
        for departure in found
    ]


def _together(families: Iterable[str]) -> str:
    """What departed in company, as words."""
    names = " and ".join(sorted(families))
    return f"{names} changed so too" if names else ""


def _families(found: Iterable[Departure]) -> set[str]:
    return {departure.family for departure in found}


def departures(present: Reading, earlier: Sequence[Reading]) -> list[Departure]:
    """The metrics that are off in the direction of collapse, the farthest of each family.

    Args:
        present: The checkpoint.
        earlier: Comparable ones, by step.
    """
    return _farthest(_departure(name, present, earlier) for name in METRICS)


def slide(present: Reading, earlier: Sequence[Reading]) -> list[Departure]:
    """The metrics in which a campaign slid away from its best checkpoint, too slowly for any step to stand out.

    The best is the one that predicted the probes best: while a model learns, each checkpoint is the next one's measure.
    Empty unless the probes are predicted worse now, which tells a slide from learning, and two families slid. A loss
    that is as far off as a metric must be stands for one of the two.
    """
    loss = _finite(present.values.get("loss"))
    known = ((_finite(reading.values.get("loss")), reading) for reading in earlier)
    losses = [(earlier_loss, reading) for earlier_loss, reading in known if earlier_loss is not None]
    if loss is None or not losses:
        return []
    lowest, best = min(losses, key=lambda pair: pair[0])
    if loss <= (1 + WORSE_LOSS) * lowest:
        return []
    needed = FAMILIES_FOR_CRITICAL - (loss >= (1 + LEAST_SHARE) * lowest)
    found = _farthest(_since(best, name, present, checkpoints=len(earlier)) for name in METRICS)
    return found if len(_families(found)) >= needed else []


def _since(best: Reading, name: str, present: Reading, *, checkpoints: int) -> Departure | None:
    value, baseline = _finite(present.values.get(name)), _finite(best.values.get(name))
    if value is None or baseline is None or (name == "kl" and not _has_such_a_reference(best, present)):
        return None
    if not _is_far(name, value, baseline):
        return None
    against = f"the value at step {best.step}, where the loss was lowest of {_checkpoints(checkpoints)}"
    return Departure(metric=name, value=value, baseline=baseline, checkpoints=checkpoints, against=against)


def _farthest(found: Iterable[Departure | None]) -> list[Departure]:
    """Of each family the one that went farthest."""
    farthest: dict[str, Departure] = {}
    for departure in found:
        if departure and (departure.family not in farthest or departure.share > farthest[departure.family].share):
            farthest[departure.family] = departure
    return list(farthest.values())


def _is_far(name: str, value: float, baseline: float) -> bool:
    if name == "kl" and value - baseline < LEAST_KL_NATS:
        return False
    return _share(METRICS[name], value, baseline) >= LEAST_SHARE


def _departure(name: str, present: Reading, earlier: Sequence[Reading]) -> Departure | None:
    value = _finite(present.values.get(name))
    if value is None:
        return None
    peers = [reading for reading in earlier if name != "kl" or _has_such_a_reference(reading, present)]
    history = [found for reading in peers if (found := _finite(reading.values.get(name))) is not None]
    if len(history) < FEWEST:
        return _against_reference(name, value, present, earlier, checkpoints=len(history))
    baseline = median(history)
    z = abs(_z_of_divergence(value, history) if name == "kl" else robust_z(value, history))
    if z <= CRITICAL_Z or not _is_far(name, value, baseline):
        return None
    against = f"the median of {_checkpoints(len(history))} ({_spreads(z)})"
    return Departure(metric=name, value=value, baseline=baseline, checkpoints=len(history), against=against, z=z)


def _z_of_divergence(value: float, history: Sequence[float]) -> float:
    """In logarithms: while training leaves a fixed reference, the divergence grows by factors, and that is healthy."""
    logs = [math.log(max(earlier, NO_KL_NATS)) for earlier in history]
    return robust_z(math.log(max(value, NO_KL_NATS)), logs, least_spread=LEAST_SPREAD)


def _has_such_a_reference(reading: Reading, present: Reading) -> bool:
    """Whether two divergences are of one kind: from the same checkpoint, or over the same number of steps."""
    if reading.reference is None or present.reference is None:
        return False
    if reading.reference == present.reference:
        return True
    if reading.reference_step is None or present.reference_step is None:
        return False
    return reading.step - reading.reference_step == present.step - present.reference_step


def _against_reference(
    name: str, value: float, present: Reading, earlier: Sequence[Reading], *, checkpoints: int
) -> Departure | None:
    """The rules for a young campaign. A model that predicts the probes better than its reference learns: no alert."""
    loss, reference_loss = present.values.get("loss"), present.reference_values.get("loss")
    if loss is not None and reference_loss is not None and loss <= reference_loss:
        return None
    against = f"the reference's value; {_checkpoints(checkpoints)} to compare with, {FEWEST} are needed"
    if name == "kl":
        # The nats that the reference's own predictions cost: the divergence is what the present model adds to them.
        entropy = present.reference_values.get("entropy")
        is_off = entropy is not None and value >= max(LEAST_SHARE * entropy, LEAST_KL_NATS)
        baseline: float | None = 0.0 if is_off else None
    else:
        baseline = _finite(_of_reference(name, present, earlier))
    if baseline is None or not _is_far(name, value, baseline):
        return None
    return Departure(metric=name, value=value, baseline=baseline, checkpoints=checkpoints, against=against)


def _of_reference(name: str, present: Reading, earlier: Sequence[Reading]) -> float | None:
    """As measured beside the present checkpoint, else when the reference was itself analysed."""
    own = (reading.values.get(name) for reading in earlier if reading.fingerprint == present.reference)
    known = (value for value in (present.reference_values.get(name), *own) if value is not None)
    return next(known, None)


def _share(metric: Metric, value: float, baseline: float) -> float:
    """How much of the way from baseline to collapse is behind a value, negative on the healthy side."""
    if metric.limit is None:
        return (value - baseline) / baseline if baseline else math.copysign(math.inf, value)
    return (value - baseline) / (metric.limit - baseline) if metric.limit != baseline else 0.0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _collapse_alert(departure: Departure, *, severity: Literal["warning", "critical"], support: str) -> Alert:
    metric = METRICS[departure.metric]
    return Alert(
        severity=severity,
        family=metric.family,
        metric=departure.metric,
        value=departure.value,
        baseline=departure.baseline,
        checkpoints=departure.checkpoints,
        confidence=departure.confidence,
        message=_collapse_message(departure, support),
    )


def _collapse_message(departure: Departure, support: str) -> str:
    metric = METRICS[departure.metric]
    if metric.limit == 1:
        off = f"{_percent(departure.share)} of the way from {_shown(departure.baseline)} to 1"
    else:
        off = _off(departure.value, departure.baseline)
    found = f"{metric.words} is {_shown(departure.value)}, {off}, {departure.against}; {support}"
    return f"{found}. This is a sign of collapse, not a proof: read what the model writes."


# Weights.


class _Left(NamedTuple):
    """A block whose norm left its history."""

    z: float
    block: str
    norm: float
    baseline: float
    checkpoints: int


def _jumping(present: Reading, earlier: Sequence[Reading]) -> list[Alert]:
    """A warning where blocks' norms left their histories anew, named after the one that left its own farthest."""
    far = _left(present, earlier)
    last = earlier[-1] if earlier else present
    told = {found.block: found.norm for found in _left(last, earlier[:-1])}
    news = [found for found in far if found.block not in told or _is_off(found.norm, told[found.block])]
    if not news:
        return []
    worst = max(news, key=lambda found: found.z)
    more = f" {len(far) - 1} more of {len(present.norms)} blocks left theirs." if len(far) > 1 else ""
    message = (
        f"The weights of {worst.block} have norm {_shown(worst.norm)}, {_off(worst.norm, worst.baseline)}, the median"
        f" of {_checkpoints(worst.checkpoints)} ({_spreads(worst.z)}).{more} A sign of a jump in training, not a proof"
        " of damage: look at the learning rate and the loss there."
    )
    return [
        Alert(
            severity="warning",
            family="weights",
            metric="l2",
            block=worst.block,
            value=worst.norm,
            baseline=worst.baseline,
            checkpoints=worst.checkpoints,
            message=message,
        )
    ]


def _left(present: Reading, earlier: Sequence[Reading]) -> list[_Left]:
    far = []
    for block, norm in present.norms.items():
        history = [value for reading in earlier if (value := reading.norms.get(block)) is not None]
        if norm is not None and len(history) >= FEWEST and abs(z := robust_z(norm, history)) > WEIGHTS_Z:
            far.append(_Left(abs(z), block, norm, median(history), len(history)))
    return far


def _is_off(value: float, before: float) -> bool:
    return abs(value - before) >= LEAST_SHARE * abs(before)


# Words.


def _off(value: float, baseline: float) -> str:
    side = "above" if value > baseline else "below"
    # Beyond ten times, and from zero, a percentage says nothing.
    is_far = abs(value - baseline) > _MANY * abs(baseline)
    return f"{'' if is_far else _percent(abs(value / baseline - 1)) + ' '}{side} {_shown(baseline)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _shown(value: float) -> str:
    return f"{value:.3g}"


def _spreads(z: float) -> str:
    return f"robust z {z:.1f}" if math.isfinite(z) else "which never differed"


def _checkpoints(number: int) -> str:
    return f"{number} earlier checkpoint{'' if number == 1 else 's'}"
