"""What the strata show: a metric of every block, or submodule, at every checkpoint, at most 400 rows by 1000 columns.

Pure numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from contracts.artifacts import DriftTimeline, HealthTimeline

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MOST_ROWS: Final = 400
MOST_COLUMNS: Final = 1000


class Metric(Struct, frozen=True, kw_only=True):
    """A number that the strata can show."""

    title: str
    definition: str
    section: str
    """Of the page on the statistics, where more is said."""
    summary: Literal["drift", "health"]
    field: str
    """Of the summary's layers; for ``kl`` of the whole model."""
    is_log: bool = True
    keeps: Literal["largest", "smallest"] = "largest"
    """Of several checkpoints in one column: the one that says more."""
    has_resolution: bool = False
    """Whether rounding of the stored values shows in it."""
    has_submodules: bool = False
    """Whether there is a number of each submodule too."""


METRICS: Final[dict[str, Metric]] = {
    "relative_l2": Metric(
        title="Relative L2",
        definition="norm of the change over the reference's norm",
        section="weight-drift",
        summary="drift",
        field="relative_l2",
        has_resolution=True,
        has_submodules=True,
    ),
    "l2": Metric(
        title="L2",
        definition="norm of the change",
        section="weight-drift",
        summary="drift",
        field="l2",
        has_resolution=True,
        has_submodules=True,
    ),
    "one_minus_cosine": Metric(
        title="1 − cosine",  # noqa: RUF001 -- a minus sign
        definition="how far the direction turned",
        section="weight-drift",
        summary="drift",
        field="one_minus_cosine",
        has_resolution=True,
        has_submodules=True,
    ),
    "changed_fraction": Metric(
        title="Changed fraction",
        definition="share of values whose bits differ",
        section="weight-drift",
        summary="drift",
        field="changed_fraction",
        is_log=False,
        has_submodules=True,
    ),
    "cka": Metric(
        title="CKA",
        definition="similarity of the hidden states with the reference's, 1: the same",
        section="functional-drift-and-predictions",
        summary="drift",
        field="cka",
        is_log=False,
        keeps="smallest",
    ),
    "kl": Metric(
        title="KL divergence",
        definition="of the predictions from the reference's, in nats; one number for the whole model",
        section="functional-drift-and-predictions",
        summary="drift",
        field="kl",
    ),
    "activation_std": Metric(
        title="Activation std",
        definition="standard deviation of the block's outputs on the probes",
        section="activations",
        summary="health",
        field="activation_std",
    ),
    "rankme": Metric(
        title="RankMe",
        definition="effective rank of the hidden states",
        section="representation",
        summary="health",
        field="rankme",
        keeps="smallest",
    ),
}


ROUNDING: Final = "below the resolution: rounding"
"""What is said of a value that ``below`` finds."""


class Submodules(Protocol):
    """The drift of each submodule, as arrays."""

    @property
    def blocks(self) -> Mapping[str, str]:
        """The block of each, by its name."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Of the checkpoints that were compared with a reference, ascending."""

    def column(self, name: str) -> Floats:
        """A number of each, shape (submodules, checkpoints)."""


class Column(NamedTuple):
    """One column: a checkpoint, or several that follow each other."""

    first: int
    last: int

    @property
    def label(self) -> str:
        """The step, or the first and the last."""
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"  # noqa: RUF001 -- a range


class Grid(NamedTuple):
    """A metric, rows from the embedding to the head, columns by step."""

    rows: tuple[str, ...]
    """Names of blocks, or of submodules."""
    blocks: tuple[str, ...]
    """The block of each row."""
    columns: tuple[Column, ...]
    values: Floats
    """Shape (rows, columns); NaN where there is none."""
    below: Bools
    """Whether the value is below the resolution of the stored dtype."""
    references: tuple[int | None, ...] = ()
    """Steps that the columns are compared with; empty where columns hold several checkpoints."""
    rows_each: int = 1
    """Blocks or submodules in one row; the first one's name stands for them."""
    columns_each: int = 1
    """Checkpoints in one column."""


def grid(
    metric: str,
    timeline: DriftTimeline,
    health: HealthTimeline,
    *,
    submodules: Submodules | None = None,
    most_columns: int = MOST_COLUMNS,
) -> Grid:
    """A metric of the summaries, all analysed checkpoints as columns.

    Args:
        metric: One of ``METRICS``.
        timeline: Of the campaign.
        health: Of the same campaign; has the columns that were compared with nothing.
        submodules: Of the same campaign, for a row each; None: a row a block. Not used where the metric has none.
        most_columns: Where there are more checkpoints, several share a column.
    """
    which = METRICS[metric]
    steps = tuple(sorted({*timeline.checkpoints, *health.checkpoints}))
    compared_with = dict(zip(timeline.checkpoints, timeline.reference_steps, strict=False))
    if which.field == "kl":
        values = _placed(timeline.checkpoints, steps)(timeline.kl)[np.newaxis, :]
        rows = _Rows(("predictions",), ("predictions",), values, np.zeros(values.shape, np.bool_))
    elif submodules is not None and which.has_submodules:
        rows = _of_submodules(which, submodules, steps, order=tuple(timeline.layers))
    else:
        rows = _of_blocks(which, timeline, health, steps)
    whole = Grid(
        rows=rows.names,
        blocks=rows.blocks,
        columns=tuple(Column(step, step) for step in steps),
        values=rows.values,
        below=rows.below,
        references=tuple(compared_with.get(step) for step in steps),
    )
    return _binned(whole, which, most_columns)


class _Rows(NamedTuple):
    """All rows of a grid, one column a checkpoint."""

    names: tuple[str, ...]
    blocks: tuple[str, ...]
    values: Floats
    below: Bools


def _of_blocks(which: Metric, timeline: DriftTimeline, health: HealthTimeline, steps: tuple[int, ...]) -> _Rows:
    of_drift, of_health = _placed(timeline.checkpoints, steps), _placed(health.checkpoints, steps)
    names = tuple(dict.fromkeys([*timeline.layers, *health.layers]))
    placed, layers = (of_drift, timeline.layers) if which.summary == "drift" else (of_health, health.layers)
    values = _stacked([placed(getattr(layers.get(name), which.field, ())) for name in names], len(steps))
    flags = [of_drift(layer.below_resolution if (layer := timeline.layers.get(name)) else ()) for name in names]
    return _Rows(names, names, values, below(which, values, _stacked(flags, len(steps))))


def _of_submodules(which: Metric, found: Submodules, steps: tuple[int, ...], *, order: tuple[str, ...]) -> _Rows:
    """Block by block in the timeline's order."""
    place = {block: number for number, block in enumerate(order)}
    blocks = tuple(found.blocks.values())
    rows = sorted(range(len(blocks)), key=lambda row: place.get(blocks[row], len(place)))
    column = {step: number for number, step in enumerate(steps)}
    known = [(number, column[step]) for number, step in enumerate(found.steps) if step in column]
    values, flags = (np.full((len(rows), len(steps)), np.nan) for _ in range(2))
    of, to = ([pair[side] for pair in known] for side in (0, 1))
    for whole, name in ((values, which.field), (flags, "below_resolution")):
        whole[:, to] = found.column(name)[np.ix_(rows, of)]
    values[~np.isfinite(values)] = np.nan
    names = tuple(found.blocks)
    return _Rows(
        tuple(names[row] for row in rows), tuple(blocks[row] for row in rows), values, below(which, values, flags)
    )


def below(which: Metric, values: Floats, flags: Floats) -> Bools:
    """Which of the values are below the resolution of the stored dtype, where that shows in the metric."""
    # What did not change at all is exact: nothing there was rounded.
    return (flags == 1) & (values != 0) if which.has_resolution else np.zeros(values.shape, np.bool_)


def _placed(own: Sequence[int], steps: Sequence[int]) -> Callable[[Sequence[float | None]], Floats]:
    """Puts a summary's array onto all steps."""
    place = {step: number for number, step in enumerate(steps)}
    places = [place[step] for step in own]

    def put(values: Sequence[float | None]) -> Floats:
        found = np.full(len(steps), np.nan)
        known = np.array(values[: len(places)], np.float64)
        found[places[: len(known)]] = np.where(np.isfinite(known), known, np.nan)
        return found

    return put


def _stacked(rows: Sequence[Floats], width: int) -> Floats:
    return np.stack(rows) if rows else np.empty((0, width))


def _binned(found: Grid, metric: Metric, most_columns: int) -> Grid:
    """The grid in few enough rows and columns: of each cell's values the one that says more, and its flag."""
    rows_each = -(-len(found.rows) // MOST_ROWS) or 1
    columns_each = -(-len(found.columns) // most_columns) or 1
    if rows_each == columns_each == 1:
        return found
    values, below = found.values, found.below
    for axis, each in ((0, rows_each), (1, columns_each)):
        values, below = _kept(values, below, axis=axis, each=each, keeps=metric.keeps)
    columns = found.columns
    return Grid(
        rows=found.rows[::rows_each],
        blocks=found.blocks[::rows_each],
        columns=tuple(
            Column(columns[place].first, columns[min(place + columns_each, len(columns)) - 1].last)
            for place in range(0, len(columns), columns_each)
        ),
        values=values,
        below=below,
        references=found.references if columns_each == 1 else (),
        rows_each=rows_each,
        columns_each=columns_each,
    )


def _kept(values: Floats, below: Bools, *, axis: int, each: int, keeps: str) -> tuple[Floats, Bools]:
    if each == 1:
        return values, below
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, -values.shape[axis] % each)
    values = np.pad(values, padding, constant_values=np.nan)
    shape = list(values.shape)
    shape[axis : axis + 1] = [values.shape[axis] // each, each]
    groups, flags = values.reshape(shape), np.pad(below, padding).reshape(shape)
    lost = -np.inf if keeps == "largest" else np.inf
    comparable = np.where(np.isnan(groups), lost, groups)
    best = comparable.argmax(axis + 1) if keeps == "largest" else comparable.argmin(axis + 1)
    where = np.expand_dims(best, axis + 1)
    return (
        np.take_along_axis(groups, where, axis + 1).squeeze(axis + 1),
        np.take_along_axis(flags, where, axis + 1).squeeze(axis + 1),
    )


def measured(timeline: DriftTimeline, health: HealthTimeline) -> tuple[str, ...]:
    """The metrics of which there is at least one value, in the switch's order."""
    layers: Mapping[str, Sequence[object]] = {"drift": [*timeline.layers.values()], "health": [*health.layers.values()]}
    return tuple(
        name
        for name, metric in METRICS.items()
        if any(
            value is not None
            for owner in ([timeline] if metric.field == "kl" else layers[metric.summary])
            for value in getattr(owner, metric.field)
        )
    )
