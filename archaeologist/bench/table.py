"""A record for people: a table and bars. Pure: Structs in, rich renderables out."""

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from archaeologist.bench.record import BenchRecord

BAR: Final = 40
"""Characters of the longest bar."""


def rendered(record: BenchRecord) -> RenderableType:
    """All of a record."""
    machine = record.machine
    return Group(
        Text(
            f"{record.pair}, {record.gigabytes:.2f} GB of weights; {machine.processor}, {machine.cores} cores,"
            f" {machine.memory_gb:.0f} GB; {machine.system}; {record.commit}; medians of {record.rounds} runs"
        ),
        _figures(record),
        _kernels(record),
        *_bars(record),
        *(Text(f"left out: {what}: {why}") for what, why in record.left_out.items()),
    )


def _figures(record: BenchRecord) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading, is_right in (("", False), ("ours", True), ("the specification's approach", True), ("ratio", True)):
        table.add_column(heading, justify="right" if is_right else "left")
    theirs = record.specification
    pairs = (
        ("work", record.work_seconds, theirs and theirs.work_seconds, theirs and theirs.ratio_work),
        (
            "work as it is written",
            record.work_seconds,
            theirs and theirs.written_seconds,
            theirs and theirs.ratio_written,
        ),
        (
            "process, from start to end",
            record.process_seconds,
            theirs and theirs.process_seconds,
            theirs and theirs.ratio_process,
        ),
    )
    for name, ours, other, ratio in pairs:
        table.add_row(name, f"{ours:.2f} s", f"{other:.2f} s" if other else "", f"{ratio:.1f}" if ratio else "")
    table.add_row(
        "peak anonymous memory",
        f"{record.peak_mb:.0f} MB",
        f"{theirs.peak_mb:.0f} MB" if theirs else "",
        f"{theirs.peak_mb / record.peak_mb:.1f}" if theirs else "",
    )
    table.add_row("start to the first byte, weights and drift", f"{record.start_seconds:.2f} s")
    if record.start_activations_seconds is not None:
        table.add_row("start to the first byte, with activations", f"{record.start_activations_seconds:.2f} s")
    table.add_row("loading the compiled code", f"{record.load_seconds:.2f} s")
    table.add_row("walk, share of the reading rate", f"{record.walk_share:.2f}")
    if record.cold is not None:
        table.add_row("cold walk, share of dd", f"{record.cold.share:.2f}")
    return table


def _kernels(record: BenchRecord) -> Table:
    table = Table(box=None, pad_edge=False, title="ns a value on one core, data in the cache", title_justify="left")
    dtypes = list(dict.fromkeys(name.partition(" ")[0] for name in record.kernels))
    parts = list(dict.fromkeys(name.partition(" ")[2] for name in record.kernels))
    table.add_column("")
    for dtype in dtypes:
        table.add_column(dtype, justify="right")
    for part in parts:
        table.add_row(part, *(f"{record.kernels[f'{dtype} {part}']:.2f}" for dtype in dtypes))
    return table


def _bars(record: BenchRecord) -> Iterator[Text]:
    rates = {"read and dropped": record.reading_gb_s, "walk": record.walk_gb_s}
    if record.specification is not None:
        rates["specification's approach"] = record.gigabytes / record.specification.work_seconds
    if record.cold is not None:
        rates |= {"cold: dd": record.cold.dd_gb_s, "cold: walk": record.cold.walk_gb_s}
    largest = max(rates.values())
    yield Text("GB/s")
    for name, rate in rates.items():
        yield Text(f"{name:26} {rate:6.2f} {'█' * max(1, round(BAR * rate / largest))}")
