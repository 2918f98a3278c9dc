"""Brings a campaign's summaries up to date, or builds them anew: the same code either way, with and without a store.

Called by the daemon after each job, by its sweep, and by ``summarize``. What is on the disk decides: the folder is
listed, files whose signature is known are not read again, and the summaries are a pure function of what all of them
hold. So it does not matter who calls, how often, in which order, or after which crash.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.errors import (
    ArchaeologistError,
    ArchiveUnavailable,
    ArtifactInvalid,
    ArtifactUnwritable,
    SummariesLate,
)
from archaeologist.summaries import sources, store
from archaeologist.summaries.continuation import Coverage, Written, place, write_timeline
from archaeologist.summaries.extract import Extract, extract, submodules
from archaeologist.summaries.intervals import Pair, consecutive, estimates_needed
from archaeologist.summaries.sketches import Sketches
from archaeologist.summaries.skill_impact import pairs, skill_impact
from archaeologist.summaries.skills import read_history
from archaeologist.summaries.sources import Inputs, Source
from archaeologist.summaries.stability import stability_report, window
from archaeologist.summaries.store import Entry, Store
from archaeologist.summaries.table import Table
from archaeologist.summaries.timelines import alerts, drift_timeline, health_timeline
from contracts.artifacts import LayerStats, LeftOut, SkillHistory, SkillImpact, StabilityReport

LOCK: Final = ".summaries.lock"
LOCK_RETRY_SECONDS: Final = 0.02


class Outcome(NamedTuple):
    """What an update found."""

    checkpoints: int
    """That the summaries cover."""
    read: int
    """Artifacts that had to be read."""
    left_out: tuple[LeftOut, ...]
    is_changed: bool
    """Whether the summaries were written; False: they were up to date."""


def update(folder: CampaignFolder, *, until: float | None = None) -> Outcome:
    """Brings the summaries up to date with what lies in the campaign's folder. Blocking.

    Args:
        folder: The campaign.
        until: When to stop, by ``time.monotonic``; None: never. What was read by then is kept.

    Raises:
        SummariesLate: The time is up, or somebody else holds the lock that long.
        ArtifactUnwritable: The summaries cannot be written; the old ones stay.
    """
    return _brought_up_to_date(folder, until=until, is_fresh=False)


def rebuild(folder: CampaignFolder, *, until: float | None = None) -> Outcome:
    """Builds the summaries from the artifacts alone; arguments and errors as for ``update``."""
    return _brought_up_to_date(folder, until=until, is_fresh=True)


def _brought_up_to_date(folder: CampaignFolder, *, until: float | None, is_fresh: bool) -> Outcome:
    try:
        folder.summaries.mkdir(parents=True, exist_ok=True)
        with _locked(folder, until):
            inputs = Inputs.of(folder)
            known = Store() if is_fresh else store.load(folder.summaries)
            if known.inputs == (digest := inputs.digest()) and sources.is_made_of(folder, digest):
                return Outcome(len(_extracts(known)), 0, _problems(known), is_changed=False)
            outcome, fresh = _summarized(folder, inputs, known, until=until)
            kept = "" if any(map(_is_out_of_reach, fresh.entries.values())) else digest
            store.save(folder.summaries, msgspec.structs.replace(fresh, inputs=kept))
            sources.mark(folder, kept)
            return outcome
    except OSError as error:
        msg = f"summaries in {str(folder.summaries)!r} cannot be written: {error.strerror or error}; check their disk"
        raise ArtifactUnwritable(msg) from error


def _summarized(folder: CampaignFolder, inputs: Inputs, known: Store, *, until: float | None) -> tuple[Outcome, Store]:
    """Reads what is not known and writes every summary; what to keep for the next time."""
    fresh = _with_artifacts(folder, inputs, known, until=until)
    extracts = _extracts(fresh)
    sketches = Sketches(folder, extracts, signatures=inputs.sketches, store=fresh, until=until)
    coverage = Coverage(Table(list(extracts.values())), _signatures(fresh))
    try:
        written = _write_all(folder, coverage, sketches, fresh)
    except SummariesLate:
        partly = {"distances": {**fresh.distances, **sketches.distances}, "turns": {**fresh.turns, **sketches.turns}}
        store.save(folder.summaries, msgspec.structs.replace(fresh, **partly))
        raise
    # What nothing asked for this time is dropped: it is of files that were replaced.
    measured = {"sketches": sketches.checked, "distances": sketches.distances, "turns": sketches.turns}
    read = sum(known.entries.get(name) is not entry for name, entry in fresh.entries.items())
    outcome = Outcome(len(extracts), read, written.left_out, is_changed=True)
    return outcome, msgspec.structs.replace(fresh, timelines=written.timelines, **measured)


def _with_artifacts(folder: CampaignFolder, inputs: Inputs, known: Store, *, until: float | None) -> Store:
    """The store with an entry for each artifact that lies there, and for no other.

    Raises:
        SummariesLate: The time is up; what was read is kept.
    """
    entries: dict[str, Entry] = {}
    for source in inputs.artifacts:
        entry = known.entries.get(source.name)
        if entry is not None and entry.signature == source.signature and not _is_out_of_reach(entry):
            entries[source.name] = entry
        elif until is None or time.monotonic() <= until:
            entries[source.name] = _read(folder, source)
        else:
            kept = {**known.entries, **entries}
            store.save(folder.summaries, msgspec.structs.replace(known, inputs="", entries=kept))
            msg = f"{len(entries)} of {len(inputs.artifacts)} artifacts were read in time; the next update goes on"
            raise SummariesLate(msg)
    return msgspec.structs.replace(known, inputs="", entries=entries)


def _read(folder: CampaignFolder, source: Source) -> Entry:
    """An artifact's extract, or why it has none."""
    try:
        return _entry(source, sources.read_source(folder, source))
    except ArchaeologistError as error:
        return Entry(signature=source.signature, problem=sources.left_out(folder, source, error))


def _entry(source: Source, artifact: LayerStats) -> Entry:
    entry = Entry(signature=source.signature, extract=extract(artifact), submodules=submodules(artifact))
    sources.check_numbers(source, entry)
    return entry


class _Written(NamedTuple):
    """Every summary."""

    left_out: tuple[LeftOut, ...]
    timelines: dict[str, Written]


def _write_all(folder: CampaignFolder, coverage: Coverage, sketches: Sketches, known: Store) -> _Written:
    """Computes and writes every summary."""
    whose = {"hero_id": folder.hero_id, "campaign_id": folder.campaign_id}
    table, unreadable = coverage.table, _problems(known)
    told = alerts(table.extracts)
    makers: dict[Path, Callable[[Table], Struct]] = {
        folder.timeline: lambda part: drift_timeline(part, left_out=unreadable, **whose),
        folder.health: lambda part: health_timeline(part, alerts=told, left_out=unreadable, **whose),
    }
    # The long ones go to the disk while the others are computed.
    with ThreadPoolExecutor(max_workers=2) as pool:
        timelines = {
            path.name: pool.submit(write_timeline, path, maker, coverage=coverage, known=known.timelines.get(path.name))
            for path, maker in makers.items()
        }
        stability = _stability(table, sketches, unreadable, whose)
        impact = _skill_impact(folder, table, sketches, unreadable)
        others = [
            pool.submit(_write, folder.stability, stability),
            pool.submit(_write, folder.skill_impact, impact),
        ]
        for other in others:
            other.result()
        return _Written(impact.left_out, {name: timeline.result() for name, timeline in timelines.items()})


def _stability(
    table: Table, sketches: Sketches, unreadable: tuple[LeftOut, ...], whose: dict[str, str]
) -> StabilityReport:
    distances = _distances(sketches, estimates_needed(table, consecutive(table)))
    covered = window(table, distances, has_sketch=sketches.is_usable)
    turns = {turn: found for turn in covered.turns if (found := sketches.turn(*turn)) is not None}
    ends = [covered.ends] if covered.ends else []
    return stability_report(
        table,
        covered=covered,
        distances={**distances, **_distances(sketches, ends)},
        turns=turns,
        left_out=(*unreadable, *sketches.problems),
        **whose,
    )


def _skill_impact(
    folder: CampaignFolder, table: Table, sketches: Sketches, unreadable: tuple[LeftOut, ...]
) -> SkillImpact:
    problem: tuple[LeftOut, ...] = ()
    try:
        history = read_history(folder)
    except ArtifactInvalid as error:
        history = SkillHistory(hero_id=folder.hero_id, campaign_id=folder.campaign_id)
        problem = (LeftOut(file=folder.skills.name, code=error.code, reason=str(error)),)
    distances = _distances(sketches, estimates_needed(table, pairs(table, history)))
    left_out = (*unreadable, *sketches.problems, *problem)
    return skill_impact(table, history, distances=distances, left_out=left_out)


def _distances(sketches: Sketches, pairs: Iterable[Pair]) -> dict[Pair, dict[str, float]]:
    """What the sketches say of each pair; those with a sketch that cannot be used are not in it."""
    found = ((pair, sketches.distance(*pair)) for pair in pairs)
    return {pair: blocks for pair, blocks in found if blocks is not None}


def _write(path: Path, summary: Struct) -> None:
    place(path, msgspec.json.encode(summary))


def _extracts(known: Store) -> dict[int, Extract]:
    """By step, ascending."""
    found = [entry.extract for entry in known.entries.values() if entry.extract]
    return {one.step: one for one in sorted(found, key=lambda one: one.step)}


def _signatures(known: Store) -> list[str]:
    """Of the files of the extracts, in the order of these."""
    found = [(entry.extract.step, entry.signature) for entry in known.entries.values() if entry.extract]
    return [signature for _, signature in sorted(found)]


def _is_out_of_reach(entry: Entry) -> bool:
    """Whether it is archived where nothing answered: no file of the campaign changes when that is back."""
    return entry.problem is not None and entry.problem.code == ArchiveUnavailable.code


def _problems(known: Store) -> tuple[LeftOut, ...]:
    return tuple(entry.problem for entry in known.entries.values() if entry.problem)


@contextlib.contextmanager
def _locked(folder: CampaignFolder, until: float | None) -> Iterator[None]:
    """Nobody else writes this campaign's summaries meanwhile; on file systems without locks, the last one wins."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder.analysis / LOCK, flags, 0o644)
    try:
        _acquire(descriptor, until)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, until: float | None) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if until is not None and time.monotonic() > until:
                msg = "somebody else is writing the campaign's summaries and takes long; try again later"
                raise SummariesLate(msg) from None
            time.sleep(LOCK_RETRY_SECONDS)
        except OSError:
            return  # the file system cannot lock
        else:
            return
