"""Artifacts as tables for a terminal. Pure: Structs in, rich renderables out."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from archaeologist.checkpoints.names import place
from archaeologist.cli.console import printable, word
from archaeologist.findings import analysis
from contracts.artifacts import (
    AttentionStats,
    GlobalDriftStats,
    LayerDrift,
    LayerDriftStats,
    LayerStats,
    LayerWeightStats,
)
from contracts.findings import Finding

BARS: Final = "▁▂▃▄▅▆▇█"
HEAT: Final = ("blue", "cyan", "green", "yellow", "red")
ABSENT: Final = "-"


def layer_stats(stats: LayerStats) -> RenderableType:
    """A ``layer_stats`` artifact: one row a block, the heat strip of the drift, what else is to be said."""
    has_drift = bool(stats.drift_stats)
    largest = _largest(stats.drift_stats)
    table = _table("block", "type", "parameters", "norm", *(DRIFT_COLUMNS if has_drift else ()), "flags")
    for name, block in stats.weight_stats.items():
        drift = stats.drift_stats.get(name)
        table.add_row(
            printable(name),
            printable(block.layer_type),
            f"{block.param_count:,}",
            number(block.l2),
            *(_drift_cells(drift, largest) if has_drift else ()),
            ", ".join(flags(block, drift)),
        )
    reference = f" against {stats.reference_checkpoint_path}" if stats.reference_checkpoint_path else ""
    return Group(
        Text(printable(f"{stats.checkpoint_path}{reference}")),
        *_findings(analysis.of_artifact(stats)),
        table,
        *_heat_lines(stats.drift_stats, stats.global_drift_stats),
        *_model_lines(stats),
        *_matrix_lines(stats),
        *(Text(printable(line)) for line in _remarks(stats)),
    )


def layer_drift(drift: LayerDrift) -> RenderableType:
    """A ``layer_drift`` artifact: one row a block and the heat strip."""
    largest = _largest(drift.drift_stats)
    table = _table("block", *DRIFT_COLUMNS, "flags")
    for name, block in drift.drift_stats.items():
        table.add_row(printable(name), *_drift_cells(block, largest), ", ".join(flags(None, block)))
    warnings = (f"warning: {warning}" for warning in drift.warnings)
    return Group(
        Text(printable(f"{drift.base_checkpoint} → {drift.target_checkpoint}")),
        *_findings(analysis.of_drift(drift, _kinds(drift.drift_stats))),
        table,
        *_heat_lines(drift.drift_stats, drift.global_drift_stats),
        *(Text(printable(line)) for line in warnings),
    )


DRIFT_COLUMNS: Final = ("relative L2", "parts", "cosine", "changed")
MOST_PARTS: Final = 16
"""Characters of a block's strip; more tensors share one, and the largest shows."""


def number(value: float | None) -> str:
    """Four significant digits."""
    return ABSENT if value is None else f"{value:.4g}"


def share(value: float | None) -> str:
    """A share in percent."""
    return ABSENT if value is None else f"{value:.1%}"


def flags(block: LayerWeightStats | None, drift: LayerDriftStats | None) -> list[str]:
    """What should catch the eye in a block."""
    found = []
    if block is not None:
        dead_rows = sum(tensor.dead_rows or 0 for tensor in block.tensors.values())
        counts = {"NaN": block.nan_count, "infinite": block.inf_count, "dead rows": dead_rows}
        found += [f"{count:,} {name}" for name, count in counts.items() if count]
    if drift is not None and drift.below_resolution:
        found.append("below resolution")
    broken = block.nan_count + block.inf_count if block else 0
    if drift is not None and drift.nonfinite_pairs > broken:
        found.append(f"{drift.nonfinite_pairs:,} pairs not finite")
    return found


def heat_strip(values: Sequence[float | None], *, largest: float | None = None) -> Text:
    """One character a value, its height and colour relative to the largest; a dot where there is none.

    Args:
        values: Not negative.
        largest: The largest of what strips are compared by; None: of these values.
    """
    if largest is None:
        largest = max((value for value in values if value is not None), default=0.0)
    strip = Text()
    for value in values:
        if value is None:
            strip.append("·", style="dim")
            continue
        part = value / largest if largest > 0 else 0.0
        style = HEAT[min(len(HEAT) - 1, int(part * len(HEAT)))]
        strip.append(BARS[min(len(BARS) - 1, int(part * len(BARS)))], style=style)
    return strip


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        is_text = column in {"block", "type", "parts", "flags"}
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column == "block", overflow="fold")
    return table


def _drift_cells(drift: LayerDriftStats | None, largest: float) -> tuple[RenderableType, ...]:
    if drift is None:
        return (ABSENT,) * len(DRIFT_COLUMNS)
    cosine = ABSENT if drift.cosine is None else f"{drift.cosine:.6f}"
    parts = heat_strip(_parts(drift), largest=largest)
    return number(drift.relative_l2), parts, cosine, share(drift.changed_fraction)


def _parts(drift: LayerDriftStats) -> list[float | None]:
    """Relative L2 of the block's tensors in the checkpoint's order, at most 16 values."""
    values = [tensor.relative_l2 for tensor in drift.tensors.values()]
    each = -(-len(values) // MOST_PARTS) or 1
    groups = (values[place : place + each] for place in range(0, len(values), each))
    return [max((value for value in group if value is not None), default=None) for group in groups]


def _largest(drift: dict[str, LayerDriftStats]) -> float:
    """Of all tensors' relative L2, so that the strips of all blocks compare."""
    parts = (value for block in drift.values() for value in _parts(block))
    return max((value for value in parts if value is not None), default=0.0)


def _kinds(drift: dict[str, LayerDriftStats]) -> dict[str, str]:
    """Layer type by block, from its name and that of its first tensor."""
    return {name: place(f"{name}.{next(iter(block.tensors), 'weight')}").layer_type for name, block in drift.items()}


def _findings(found: Iterable[Finding]) -> Iterator[Text]:
    for finding in found:
        yield Text("  ").append(word(finding.severity)).append(f"  {printable(finding.text)}")


def _heat_lines(drift: dict[str, LayerDriftStats], whole: GlobalDriftStats | None) -> Iterator[Text]:
    values = [block.relative_l2 for block in drift.values()]
    if not any(value is not None for value in values):
        return
    yield Text()
    yield Text("relative L2  ").append(heat_strip(values))
    most = whole.most_changed_layer_relative if whole else None
    if most is not None and most in drift:
        yield Text(f"most changed {printable(most)} ({number(drift[most].relative_l2)})")
    if any(block.tensors for block in drift.values()):
        yield Text("parts: relative L2 of each tensor of the block, one scale for all blocks", style="dim")


def _model_lines(stats: LayerStats) -> Iterator[RenderableType]:
    """What running the model gave: one row a block, then the predictions."""
    if not stats.activation_stats:
        return
    similarity = stats.functional_drift.similarity if stats.functional_drift else {}
    has_attention = any(block.attention for block in stats.activation_stats.values())
    more = [*(["CKA"] if similarity else []), *(["attention", "first token"] if has_attention else [])]
    table = _table("block", "mean", "std", "p1", "p99", "RankMe", "anisotropy", *more)
    for name, block in stats.activation_stats.items():
        cells = (block.mean, block.std, block.percentile_1, block.percentile_99, block.rankme, block.anisotropy)
        cka = [number(similarity[name].cka if name in similarity else None)] if similarity else []
        looks = block.attention or AttentionStats()
        attention = [number(looks.normalized_entropy), share(looks.first_token_mass)] if has_attention else []
        table.add_row(printable(name), *map(number, cells), *cka, *attention)
    yield Text()
    yield table
    if stats.output_stats is not None:
        predictions = f"probes: loss {number(stats.output_stats.loss)}, entropy {number(stats.output_stats.entropy)}"
        drift = stats.functional_drift.output if stats.functional_drift else None
        if drift is not None:
            predictions += f", KL {number(drift.kl)}, same first choice {share(drift.top1_agreement)}"
        yield Text(predictions)
    if stats.generations is not None:
        sampled, greedy = stats.generations.sampled.distinct_2, stats.generations.greedy.distinct_2
        yield Text(f"texts: distinct-2 {number(sampled)} sampled, {number(greedy)} greedy")


def _matrix_lines(stats: LayerStats) -> Iterator[Text]:
    """What was found of each matrix, as a range; the artifact has the numbers."""
    weights = [tensor for block in stats.weight_stats.values() for tensor in block.tensors.values()]
    changes = [tensor.spectrum for block in stats.drift_stats.values() for tensor in block.tensors.values()]
    found = {
        "stable rank of the change": [one.stable_rank for one in changes if one and one.stable_rank is not None],
        "effective rank of the change": [
            one.effective_rank for one in changes if one and one.effective_rank is not None
        ],
        "power-law exponent": [tensor.htsr_alpha for tensor in weights if tensor.htsr_alpha is not None],
    }
    for name, values in found.items():
        if values:
            span = f"{number(min(values))} to {number(max(values))}, median {number(median(values))}"
            yield Text(f"{name}: {span}, of {len(values)} matrices")


def _remarks(stats: LayerStats) -> Iterator[str]:
    for alert in stats.alerts:
        yield f"{alert.severity}: {alert.message}"
    coverage = stats.coverage
    yield (
        f"read {coverage.tensors_read} of {coverage.tensors_listed} tensors, {coverage.bytes_read:,} bytes,"
        f" in {stats.compute_duration_sec:.2f} s"
    )
    for name, reason in stats.not_computed.items():
        yield f"not computed: {name}: {reason}"
    for warning in stats.warnings:
        yield f"warning: {warning}"
