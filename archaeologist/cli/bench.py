"""``bench``: what an analysis costs on this machine, beside reading the bytes and the specification's approach."""

from pathlib import Path
from typing import Annotated

import typer

from archaeologist.cli.options import AsJson


def bench(  # noqa: PLR0917 -- the options of the command
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint to measure on; a generated pair where none is named.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="The checkpoint to compare with.", metavar="CHECKPOINT")
    ] = None,
    size: Annotated[str, typer.Option("--size", help="Of the generated pair: 0.6b, 1.7b, 4b, 8b, …")] = "0.6b",
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the pair is generated; deleted at the end.", metavar="DIR")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Alternating runs; medians count.")] = 7,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0: one for each core.")] = 0,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Also with the page cache dropped, beside dd.")] = True,
    specification: Annotated[
        bool, typer.Option("--specification/--no-specification", help="The specification's approach beside ours.")
    ] = True,
    activations: Annotated[
        bool, typer.Option("--activations/--no-activations", help="Also the start of a job with activations.")
    ] = True,
    record: Annotated[
        Path | None,
        typer.Option("--record", help="Add a line to this table, as docs/benchmark-history.md.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measures this machine: reading, each kernel, the walk, memory, start; and the specification's approach."""
    from archaeologist.bench import record as records
    from archaeologist.bench.measurement import Asked, Subject, generated, measure
    from archaeologist.bench.models import SIZES
    from archaeologist.bench.table import rendered
    from archaeologist.cli import console
    from archaeologist.errors import UsageError

    if size not in SIZES:
        msg = f"size {size!r} is not known; use one of {', '.join(SIZES)}"
        raise UsageError(msg)
    if checkpoint is None and reference is not None:
        msg = "a reference without a checkpoint; name the checkpoint too, or neither"
        raise UsageError(msg)
    asked = Asked(
        rounds=rounds,
        threads=threads,
        has_cold=cold,
        has_specification=specification,
        has_activations=activations,
    )

    def say(what: str) -> None:
        console.notices().print(f"{what} …")

    if checkpoint is not None:
        found = measure(Subject("given", checkpoint, reference), asked, say)
    else:
        say(f"a pair of the shape {size} is generated")
        with generated(size, folder) as subject:
            found = measure(subject, asked, say)
    if record is not None:
        records.append(found, record)
    if as_json:
        console.print_json(found)
    else:
        console.output().print(rendered(found))
