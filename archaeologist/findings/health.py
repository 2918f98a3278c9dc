"""What the health timeline supports: alerts, NaN and infinity, on how many checkpoints there is no sign of collapse."""

from typing import Final

from archaeologist.findings.wording import at, counted, finite, labels, number
from contracts.artifacts import HealthAlert, HealthTimeline
from contracts.findings import Evidence, Finding

FEWEST_EARLIER: Final = 5
"""Earlier checkpoints that a history needs, as in statistics.collapse."""
MOST_ALERTS: Final = 2
"""How many metrics with alerts have a sentence of their own."""

COLLAPSE: Final = frozenset({"representation", "entropy", "repetition", "divergence"})

WORDS: Final = {
    "rankme": "RankMe",
    "anisotropy": "Anisotropy",
    "feature_variance": "Feature variance",
    "entropy": "Entropy of the next token (nats)",
    "distinct_2": "Distinct-2 of sampled texts",
    "kl": "KL divergence from the reference (nats)",
    "l2": "Weight norm",
}


def findings(health: HealthTimeline, *, reason: str | None = None) -> list[Finding]:
    """What there is to say, without an order.

    Args:
        health: Of the campaign.
        reason: Why the newest checkpoint's activations were not computed, where that is known.
    """
    groups = _groups(health)
    told = _nonfinite(health) + [_alert(group, health) for group in groups[:MOST_ALERTS]]
    if rest := [alert for group in groups[MOST_ALERTS:] for alert in group]:
        told.append(_more(rest))
    if not any(alert.family in COLLAPSE for alert in health.alerts):
        told.append(_no_sign(health, reason=reason))
    return told


def measured(health: HealthTimeline) -> list[int]:
    """The places of the checkpoints whose model ran on probes."""
    return [place for place in range(len(health.checkpoints)) if _is_measured(health, place)]


def _is_measured(health: HealthTimeline, place: int) -> bool:
    if at(health.probes, place) is None:
        return False
    values = [at(health.entropy, place), *(at(layer.rankme, place) for layer in health.layers.values())]
    return any(finite(value) is not None for value in values)


def _nonfinite(health: HealthTimeline) -> list[Finding]:
    """The newest checkpoint's broken weights, where no alert tells of them already."""
    newest = len(health.checkpoints) - 1
    count = at(health.weight_nonfinite, newest)
    if not count:
        return []
    step = health.checkpoints[newest]
    if any(alert.checkpoint_step == step and alert.metric == "nonfinite" for alert in health.alerts):
        return []
    broken = [name for name, layer in health.layers.items() if at(layer.weight_nonfinite, newest)]
    where = f", first in {_label(broken[0], health)}" if broken else ""
    return [
        Finding(
            topic="alert",
            severity="critical",
            text=f"{counted(count, 'weight')} at step {step} {'is' if count == 1 else 'are'} NaN or infinite{where}.",
            basis="no history is needed to judge this",
            evidence=Evidence(block=broken[0] if broken else None, metric="weight_nonfinite", step=step),
        )
    ]


def _groups(health: HealthTimeline) -> list[list[HealthAlert]]:
    """The alerts of one metric and part together; of alerts and groups the most severe, then the newest first."""
    found: dict[tuple[str, str, str], list[HealthAlert]] = {}
    for alert in sorted(health.alerts, key=lambda alert: (alert.severity != "critical", -alert.checkpoint_step)):
        block = alert.block or "" if alert.family == "weights" else ""
        found.setdefault((alert.family, alert.metric, block), []).append(alert)
    return sorted(found.values(), key=lambda group: (group[0].severity != "critical", -group[0].checkpoint_step))


def _alert(group: list[HealthAlert], health: HealthTimeline) -> Finding:
    alert = group[0]
    return Finding(
        topic="alert",
        severity=alert.severity,
        text=f"{_said(alert, health)}{_since(alert, health)}{_others(group)}.",
        basis=_basis(alert),
        confidence=alert.confidence,
        evidence=Evidence(block=alert.block, metric=alert.metric, step=alert.checkpoint_step),
    )


def _others(group: list[HealthAlert]) -> str:
    """The alerts beside the one that is told; none after it is as severe."""
    steps, told = {alert.checkpoint_step for alert in group}, group[0].checkpoint_step
    later, earlier = sum(step > told for step in steps), sum(step < told for step in steps)
    warned = f"; warnings at {counted(later, 'later checkpoint')}" if later else ""
    return warned + (f"; alerts at {counted(earlier, 'earlier checkpoint')} too" if earlier else "")


def _said(alert: HealthAlert, health: HealthTimeline) -> str:
    value, baseline = finite(alert.value), finite(alert.baseline)
    of = f" of {_label(alert.block, health)}" if alert.block else ""
    when = f"at step {alert.checkpoint_step}"
    if alert.metric == "nonfinite":
        part = {"weights": "weights", "representation": "activations", "entropy": "predictions"}.get(alert.family, "")
        count = f"{value:,.0f} NaN or infinite" if value is not None and value >= 1 else "NaN or infinite"
        return f"{count} {part or 'values'}{of.replace(' of ', ', first in ')} {when}"
    words = WORDS.get(alert.metric, alert.metric)
    if value is None:
        return f"{words}{of} raised an alert {when}"
    # A divergence is compared with 0, which goes without saying.
    usual = "" if not baseline else f", compared with {number(baseline)}"
    sign = ": a sign of collapse" if alert.family in COLLAPSE else ""
    return f"{words}{of} {when} is {number(value)}{usual}{sign}"


def _since(alert: HealthAlert, health: HealthTimeline) -> str:
    """What the newest checkpoint says, where the alert is an older one's.

    Critical alerts are told at every checkpoint, so their absence says something. A warning is told once while it
    stays: that the newest has none is no news.
    """
    if not health.checkpoints or health.checkpoints[-1] <= alert.checkpoint_step:
        return ""
    newest = health.checkpoints[-1]
    if alert.family != "weights" and not _is_measured(health, len(health.checkpoints) - 1):
        return f"; step {newest} was not measured"
    if alert.severity != "critical":
        return ""
    if alert.family != "weights" and alert.metric != "nonfinite" and not _is_alike(health, alert.checkpoint_step):
        return f"; step {newest} was run otherwise and is not compared with it"
    return f"; step {newest} raised no critical one{' of this metric' if _stands(health) else ''}"


def _is_alike(health: HealthTimeline, step: int) -> bool:
    """Whether the newest checkpoint was run on the same probes, in the same way, as another."""
    if step not in health.checkpoints:
        return True
    return at(health.probes, health.checkpoints.index(step)) == at(health.probes, len(health.checkpoints) - 1)


def _stands(health: HealthTimeline) -> bool:
    """Whether something critical is known of the newest checkpoint."""
    newest = len(health.checkpoints) - 1
    broken = at(health.weight_nonfinite, newest)
    return bool(broken) or any(
        alert.severity == "critical" and alert.checkpoint_step >= health.checkpoints[newest] for alert in health.alerts
    )


def _basis(alert: HealthAlert) -> str:
    if alert.metric == "nonfinite":
        return "no history is needed to judge this"
    history = f"judged against {counted(alert.checkpoints, 'earlier checkpoint')}"
    confidence = ": low confidence" if alert.confidence == "low" else ""
    return f"{history}{confidence}{'; told once while it stays' if alert.severity == 'warning' else ''}"


def _more(alerts: list[HealthAlert]) -> Finding:
    critical = sum(alert.severity == "critical" for alert in alerts)
    steps = sorted({alert.checkpoint_step for alert in alerts})
    where = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    return Finding(
        topic="alert",
        severity="critical" if critical else "warning",
        text=f"{counted(len(alerts), 'more alert')} at {where}{f', {critical} of them critical' if critical else ''}.",
        basis="all of them in the alert history",
        evidence=Evidence(metric="alerts", step=steps[-1]),
    )


def _no_sign(health: HealthTimeline, *, reason: str | None) -> Finding:
    total, found = len(health.checkpoints), measured(health)
    if not found:
        return Finding(
            topic="collapse",
            severity="info",
            text="Not measured: whether the model collapses. No checkpoint was run on probes.",
            basis=reason or f"{counted(total, 'checkpoint')} without activations",
            confidence="low",
            evidence=Evidence(metric="entropy"),
        )
    newest = found[-1]
    comparable = sum(health.probes[place] == health.probes[newest] for place in found)
    if comparable == 1:
        return _alone(health, newest)
    whole = f"{len(found)} checkpoints" if len(found) == total else f"the {len(found)} of {total} checkpoints measured"
    is_low = comparable - 1 < FEWEST_EARLIER
    late = "" if newest == total - 1 else f"; the newest, step {health.checkpoints[-1]}, was not measured"
    return Finding(
        topic="collapse",
        severity="info" if is_low or late or _stands(health) else "success",
        text=f"No sign of collapse on {whole}{late}.",
        basis=f"{comparable} comparable checkpoints{': low confidence' if is_low else ''}"
        " (representation, entropy, KL)",
        confidence="low" if is_low else "normal",
        evidence=Evidence(metric="entropy", step=health.checkpoints[newest]),
    )


def _alone(health: HealthTimeline, place: int) -> Finding:
    step = health.checkpoints[place]
    return Finding(
        topic="collapse",
        severity="info",
        text=f"Not known yet: whether the model collapses. Step {step} has no earlier checkpoint to compare with.",
        basis="1 checkpoint with these probes: low confidence",
        confidence="low",
        evidence=Evidence(metric="entropy", step=step),
    )


def _label(block: str, health: HealthTimeline) -> str:
    return labels({name: layer.layer_type for name, layer in health.layers.items()}).get(block, block)
