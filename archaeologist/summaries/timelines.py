"""The two timelines: drift and health of every block over the campaign's checkpoints. Pure."""

from collections.abc import Sequence
from itertools import compress

import msgspec

from archaeologist.summaries.extract import Extract
from archaeologist.summaries.table import Floats, Table, counts, flags, numbers
from contracts.artifacts import (
    DriftTimeline,
    HealthAlert,
    HealthTimeline,
    LayerHealthTimeline,
    LayerTimeline,
    LeftOut,
)


def drift_timeline(table: Table, *, hero_id: str, campaign_id: str, left_out: Sequence[LeftOut] = ()) -> DriftTimeline:
    """The drift of every block over the checkpoints that were compared with a reference.

    Args:
        table: Of the checkpoints; those without drift take no part.
        hero_id: Whose campaign it is.
        campaign_id: Its name.
        left_out: Files that could not be read.
    """
    compared = [extract.has_drift for extract in table.extracts]

    def whole(name: str) -> tuple[float | None, ...]:
        return numbers(table.whole(name)[compared])

    return DriftTimeline(
        campaign_id=campaign_id,
        hero_id=hero_id,
        checkpoints=tuple(compress(table.steps, compared)),
        layers=_drift_layers(table, compared),
        reference_steps=tuple(compress((extract.reference_step for extract in table.extracts), compared)),
        relative_l2=whole("relative_l2"),
        l2=whole("l2"),
        one_minus_cosine=whole("one_minus_cosine"),
        changed_fraction=whole("changed_fraction"),
        kl=whole("kl"),
        js=whole("js"),
        top1_agreement=whole("top1_agreement"),
        left_out=tuple(left_out),
    )


def _drift_layers(table: Table, compared: list[bool]) -> dict[str, LayerTimeline]:
    def column(name: str) -> Floats:
        return table.column(name)[:, compared]

    total_l2, total_cosine, l2, relative_l2 = map(column, ("total_l2", "total_cosine", "l2", "relative_l2"))
    one_minus_cosine, changed, below, cka = map(
        column, ("one_minus_cosine", "changed_fraction", "below_resolution", "cka")
    )
    return {
        name: LayerTimeline(
            name=name,
            drift_l2=numbers(total_l2[row]),
            drift_cosine=numbers(total_cosine[row]),
            layer_type=kind,
            l2=numbers(l2[row]),
            relative_l2=numbers(relative_l2[row]),
            one_minus_cosine=numbers(one_minus_cosine[row]),
            changed_fraction=numbers(changed[row]),
            below_resolution=flags(below[row]),
            cka=numbers(cka[row]),
        )
        for row, (name, kind) in enumerate(table.kinds.items())
    }


def health_timeline(
    table: Table,
    *,
    hero_id: str,
    campaign_id: str,
    alerts: Sequence[HealthAlert] = (),
    left_out: Sequence[LeftOut] = (),
) -> HealthTimeline:
    """The health of every block over all analysed checkpoints.

    Args:
        table: Of the checkpoints.
        hero_id: Whose campaign it is.
        campaign_id: Its name.
        alerts: Of the whole campaign.
        left_out: Files that could not be read.
    """
    layers = {
        name: LayerHealthTimeline(
            name=name,
            layer_type=kind,
            weight_l2=numbers(table.column("weight_l2")[row]),
            weight_nonfinite=counts(table.column("weight_nonfinite")[row]),
            activation_mean=numbers(table.column("mean")[row]),
            activation_std=numbers(table.column("std")[row]),
            activation_percentile_1=numbers(table.column("percentile_1")[row]),
            activation_percentile_99=numbers(table.column("percentile_99")[row]),
            activation_nonfinite=counts(table.column("activation_nonfinite")[row]),
            rankme=numbers(table.column("rankme")[row]),
            anisotropy=numbers(table.column("anisotropy")[row]),
        )
        for row, (name, kind) in enumerate(table.kinds.items())
    }
    return HealthTimeline(
        campaign_id=campaign_id,
        hero_id=hero_id,
        checkpoints=table.steps,
        created_at=tuple(extract.created_at for extract in table.extracts),
        layers=layers,
        weight_l2=numbers(table.whole("weight_l2")),
        weight_nonfinite=counts(table.whole("weight_nonfinite")),
        entropy=numbers(table.whole("entropy")),
        loss=numbers(table.whole("loss")),
        probes=tuple(extract.probes for extract in table.extracts),
        alerts=tuple(alerts),
        left_out=tuple(left_out),
    )


def alerts(extracts: Sequence[Extract]) -> list[HealthAlert]:
    """Every alert of some checkpoints, in their order."""
    return [
        HealthAlert(checkpoint_step=extract.step, **msgspec.structs.asdict(alert))
        for extract in extracts
        for alert in extract.alerts
    ]
