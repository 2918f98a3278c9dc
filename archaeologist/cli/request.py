"""``request``: asks for an analysis over the bus, and follows it to its end."""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, get_args

import typer

from archaeologist.cli.options import Analyses, AsJson, Config, NatsUrl, Root, read_settings

if TYPE_CHECKING:
    from archaeologist.artifacts.paths import CampaignFolder
    from archaeologist.bus.connection import Bus
    from archaeologist.settings import Settings
    from contracts.messages import Progress
    from contracts.records import JobRecord, RequestRecord

PUBLISH_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.3
PATIENCE_SECONDS: Final = 60.0
"""How long a wait bears a bus that is away."""
HINT_SECONDS: Final = 10.0

_STEP: Final = re.compile(r"[0-9]{1,16}")
"""Not ``isdigit``, which takes digits that ``int`` does not. Intake says which are too large."""

Fields = dict[str, Any]


class Ending(NamedTuple):
    """How a request ended."""

    request_id: str
    state: str
    """done, failed, cancelled or refused."""
    job_key: str | None = None
    artifact_path: str | None = None
    most_changed_layer: str | None = None
    error: Any = None

    @property
    def is_good(self) -> bool:
        """Whether there is an artifact."""
        return self.state == "done"


def request(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Path of the checkpoint; or --step, --steps, or --base and --target.")
    ] = None,
    *,
    hero: Annotated[str | None, typer.Option("--hero", help="Default: from a path campaigns/HERO/CAMPAIGN/….")] = None,
    campaign: Annotated[str | None, typer.Option("--campaign", help="Default: as with --hero.")] = None,
    step: Annotated[
        int | None,
        typer.Option("--step", min=0, help="The campaign's checkpoint of this step; or that of a path without one."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="Backfill: every Nth existing checkpoint from A to B.", metavar="A:B:N"),
    ] = None,
    job_type: Annotated[
        str | None, typer.Option("--type", help="layer_stats or layer_drift (default with --base).")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="none, previous, base, best, a path or a step.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="layer_drift: path or step that it came from.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="layer_drift: path or step that it went to.")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="layer_drift: l2,cosine,frobenius.")] = None,
    priority: Annotated[str, typer.Option("--priority", help="low, normal or high.")] = "normal",
    force: Annotated[bool, typer.Option("--force", help="Run again although the same job is done.")] = False,
    activations: Annotated[bool, typer.Option("--activations/--no-activations")] = True,
    analyses: Analyses = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow until the end; exit 1 if there is no artifact.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    root: Root = None,
    nats_url: NatsUrl = None,
) -> None:
    """Asks the daemon for an analysis and prints the request's id."""
    from contracts import subjects

    settings = read_settings(config=config, root=root, nats_url=nats_url)
    is_drift = base is not None or target is not None
    if is_drift:
        refuse_beside_sides(checkpoint, step=step, steps=steps)
    folder = campaign_of(hero, campaign, path=checkpoint or target, root=settings.root_path)
    common: Fields = {
        "hero_id": folder.hero_id,
        "campaign_id": folder.campaign_id,
        "job_type": one_of("--type", job_type, subjects.JOB_TYPES) or ("layer_drift" if is_drift else "layer_stats"),
        "priority": one_of("--priority", priority, subjects.PRIORITIES),
        "force": force or None,
        "compute_activations": None if activations else False,
        "analyses": analyses or None,
        "metrics": [name.strip() for name in metrics.split(",")] if metrics else None,
        **side_fields("reference_checkpoint", reference, policies=True),
        **side_fields("base_checkpoint", base),
        **side_fields("target_checkpoint", target),
    }
    asked = [{}] if is_drift else what_is_asked(checkpoint, step=step, steps=steps, checkpoints=folder.checkpoints)
    bodies = messages(common, asked)
    endings = asyncio.run(_ask(bodies, settings, wait=wait, as_json=as_json))
    if wait and not all(ending.is_good for ending in endings):
        raise typer.Exit(1)


# Messages; pure but for looking whether a relative path exists here.


def campaign_of(hero: str | None, campaign: str | None, *, path: str | None, root: Path) -> "CampaignFolder":
    """The campaign that is meant, by name or by where the checkpoint lies.

    Raises:
        UsageError: Neither says it, or a name is none.
    """
    from archaeologist.artifacts.paths import CampaignFolder
    from archaeologist.errors import MessageInvalid, UsageError

    enclosing = CampaignFolder.enclosing(Path(path).absolute()) if path else None
    hero = hero or (enclosing.hero_id if enclosing else None)
    campaign = campaign or (enclosing.campaign_id if enclosing else None)
    if hero is None or campaign is None:
        msg = "hero and campaign are unknown; give --hero and --campaign, or a path under campaigns/HERO/CAMPAIGN"
        raise UsageError(msg)
    try:
        return CampaignFolder.of(root, hero, campaign)
    except MessageInvalid as error:
        raise UsageError(str(error)) from error


def what_is_asked(checkpoint: str | None, *, step: int | None, steps: str | None, checkpoints: Path) -> list[Fields]:
    """One dict of fields for each request.

    Raises:
        UsageError: More than one of the ways to name a checkpoint, a path with another step in its folder's name, or
            a range with nothing in it.
    """
    from archaeologist.checkpoints.steps import step_in_name
    from archaeologist.cli.steps import existing_steps, parse, select
    from archaeologist.errors import UsageError

    if steps is None:
        fields = side_fields("checkpoint", checkpoint)
        named = fields.get("checkpoint_step", step_in_name(Path(fields.get("checkpoint_path", ""))))
        if step is None:
            return [fields]
        if named not in {None, step}:
            msg = f"--step {step} contradicts {checkpoint!r}, which says step {named}; leave one of them out"
            raise UsageError(msg)
        return [{**fields, "checkpoint_step": step}]
    if checkpoint is not None or step is not None:
        msg = "--steps names the checkpoints itself; leave the path and --step out"
        raise UsageError(msg)
    wanted = parse(steps)
    existing = existing_steps(checkpoints)
    chosen = select(existing, wanted)
    if not chosen:
        there = f"there are {min(existing)} to {max(existing)}" if existing else "there are none"
        msg = f"--steps {steps!r}: no checkpoint with such a step in {str(checkpoints)!r}, {there}"
        raise UsageError(msg)
    return [{"checkpoint_step": number} for number in chosen]


def refuse_beside_sides(checkpoint: str | None, *, step: int | None, steps: str | None) -> None:
    """Nothing, where ``--base`` and ``--target`` alone name checkpoints.

    Raises:
        UsageError: Something else names one too.
    """
    from archaeologist.errors import UsageError

    if checkpoint is not None or step is not None or steps is not None:
        msg = "--base and --target name both checkpoints of a layer_drift; leave the path, --step and --steps out"
        raise UsageError(msg)


def one_of(option: str, value: str | None, known: Sequence[str]) -> str | None:
    """The value, if it is one of the known ones.

    Raises:
        UsageError: It is not.
    """
    from archaeologist.errors import UsageError

    if value is not None and value not in known:
        msg = f"{option} {value!r} is not known; use one of: {', '.join(known)}"
        raise UsageError(msg)
    return value


def side_fields(prefix: str, value: str | None, *, policies: bool = False) -> Fields:
    """The fields that a path, a bare step or (for a reference) the name of a policy stands for."""
    from contracts.messages import ReferencePolicy

    if value is None:
        return {}
    if policies and value in get_args(ReferencePolicy):
        return {"reference": value}
    if _STEP.fullmatch(value):
        return {f"{prefix}_step": int(value)}
    # What exists from here is meant from here; the rest is for the daemon to find, which may be on another machine.
    path = Path(value).expanduser()
    is_there = os.path.exists(path)  # noqa: PTH110 -- Path.exists raises where a name is too long
    return {f"{prefix}_path": str(path.absolute()) if is_there else value}


def messages(common: Fields, asked: Sequence[Fields]) -> dict[str, bytes]:
    """Bodies of ``analysis.requested`` by request id, checked by the rules of intake.

    Raises:
        UsageError: Intake would refuse it.
    """
    import msgspec

    from archaeologist.daemon.decoding import decode
    from archaeologist.errors import PermanentError, UsageError
    from contracts import subjects
    from contracts.ulid import new_ulid

    bodies = {}
    for fields in asked:
        request_id = new_ulid()
        everything = {**common, **fields, "request_id": request_id}
        body = msgspec.json.encode({name: value for name, value in everything.items() if value is not None})
        try:
            decode(subjects.ANALYSIS_REQUESTED, body)
        except PermanentError as error:
            raise UsageError(str(error)) from error
        bodies[request_id] = body
    return bodies


def ending_of(request_id: str, request: "RequestRecord | None", job: "JobRecord | None") -> Ending | None:
    """How a request ended, by its records; None while it has not.

    A finished job counts once its event is out: only then its artifact is in place.
    """
    from contracts.records import FINISHED

    if request is not None and request.state in {"refused", "skipped"}:
        return Ending(request_id, "refused", error=request.error)
    if request is None or request.state != "accepted" or job is None:
        return None
    if job.state not in FINISHED or job.event_sequence is None:
        return None
    return Ending(request_id, job.state, job.job.job_key, job.artifact_path, job.most_changed_layer, job.error)


# On the bus.


async def _ask(bodies: dict[str, bytes], settings: "Settings", *, wait: bool, as_json: bool) -> list[Ending]:
    from archaeologist.bus.connection import connected
    from archaeologist.bus.publisher import publish
    from contracts import subjects

    async with connected(settings.bus, name="archaeologist request") as bus:
        for request_id, body in bodies.items():
            await publish(
                bus, subjects.ANALYSIS_REQUESTED, body, message_id=request_id, deadline_seconds=PUBLISH_SECONDS
            )
            if not (as_json and wait):
                _print_id(request_id, as_json=as_json)
        if not wait:
            return []
        try:
            return [await _follow(bus, request_id, as_json=as_json) for request_id in bodies]
        except asyncio.CancelledError:
            _notice("no longer waiting; the analysis goes on, `archaeologist jobs cancel ID` ends it")
            raise


async def _follow(bus: "Bus", request_id: str, *, as_json: bool) -> Ending:
    from archaeologist import tasks
    from archaeologist.cli.console import progress_bar

    with progress_bar(request_id) as show:
        watching = asyncio.create_task(_show_progress(bus, request_id, show))
        try:
            ending = await _until_end(bus, request_id)
        finally:
            await tasks.end(watching)
    tell(ending, as_json=as_json)
    return ending


async def _until_end(bus: "Bus", request_id: str) -> Ending:
    """The record decides: a repeat of a finished job brings no new event."""
    from archaeologist.daemon.control import find
    from archaeologist.errors import TemporaryError

    loop = asyncio.get_running_loop()
    started = heard = loop.time()
    is_hinted = False
    while True:
        try:
            request, job = await find(bus, request_id)
        except TemporaryError:
            if bus.closed.is_set() or loop.time() - heard > PATIENCE_SECONDS:
                raise
        else:
            heard = loop.time()
            if ending := ending_of(request_id, request, job):
                return ending
            if request is None and not is_hinted and heard - started > HINT_SECONDS:
                _notice(
                    "no job yet: no `archaeologist daemon` (or `up`) runs, or it waits until the checkpoint is whole"
                    " (readiness.wait_seconds at most)"
                )
                is_hinted = True
        await asyncio.sleep(LOOK_SECONDS)


async def _show_progress(bus: "Bus", request_id: str, show: "Callable[[Progress], None]") -> None:
    """Progress events of the request's job, for the bar only."""
    import msgspec

    from archaeologist.bus.log import events
    from archaeologist.daemon.control import find
    from archaeologist.errors import ArchaeologistError
    from contracts import subjects
    from contracts.messages import Progress

    with contextlib.suppress(ArchaeologistError, msgspec.ValidationError):
        key = None
        async for logged in events(bus, last=0, follow=True, subjects=[subjects.ANALYSIS_PROGRESS]):
            if key is None:
                _, job = await find(bus, request_id)
                key = job.job.job_key if job else None
            if key is not None and logged.event.data.get("job_key") == key:
                show(msgspec.convert({**logged.event.data, "kind": "progress"}, Progress))


def _print_id(request_id: str, *, as_json: bool) -> None:
    from archaeologist.cli import console

    if as_json:
        console.print_line({"request_id": request_id})
    else:
        typer.echo(request_id)


def tell(ending: Ending, *, as_json: bool) -> None:
    """Prints how a request ended: a result on standard output, what went wrong on standard error."""
    from archaeologist.cli import console

    if as_json:
        console.print_line(ending._asdict())
        return
    if ending.error is not None:
        _notice(f"error: {ending.error.code}: {ending.error.message}")
    elif not ending.is_good:
        _notice(f"error: {ending.state}: request {ending.request_id} ended without an artifact")
    else:
        layer = f", most changed {ending.most_changed_layer}" if ending.most_changed_layer else ""
        console.print_text(f"done{layer}: {ending.artifact_path}")


def _notice(text: str) -> None:
    from archaeologist.cli.console import notices, printable

    notices().print(printable(text))
