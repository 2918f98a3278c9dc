"""Runs a walk over folders and gives the tensors' results by name."""

from contextlib import ExitStack
from pathlib import Path

from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.reader import Reader
from archaeologist.excavation.plan import Plan, find_ties, plan_walk
from archaeologist.excavation.tally import TensorResult
from archaeologist.excavation.walk import READ, Walk


def planned(target: Path, reference: Path | None = None) -> Plan:
    index = read_index(target)
    theirs = read_index(reference) if reference else None
    with ExitStack() as files:
        ties = find_ties(index, files.enter_context(Reader(index)))
        their_ties = find_ties(theirs, files.enter_context(Reader(theirs))) if theirs else None
    return plan_walk(index, ties=ties, reference=theirs, reference_ties=their_ties)


def walked(
    target: Path, reference: Path | None = None, *, threads: int = 2, read_values: int = READ
) -> dict[str, TensorResult]:
    plan = planned(target, reference)
    with ExitStack() as files:
        walk = Walk(
            plan,
            target=files.enter_context(Reader(read_index(target))),
            reference=files.enter_context(Reader(read_index(reference))) if reference else None,
            threads=threads,
            has_sketch=True,
            read_values=read_values,
        )
        return {tensor.pair.name: tensor for block in walk.blocks() for tensor in block.tensors}
