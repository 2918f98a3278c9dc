"""``analyze`` and ``drift``: one analysis, no bus."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archaeologist.cli.options import Analyses, AsJson, Config, read_settings

if TYPE_CHECKING:
    from archaeologist.api import Excavated
    from contracts.messages import ForwardOptions, GpuOptions, Job

Threads = Annotated[
    int | None, typer.Option("--threads", min=0, help="Threads; 0: one for each core, as set in worker.threads.")
]


def analyze(  # noqa: PLR0917 -- the options of the command
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint's folder or one weight file.")],
    reference: Annotated[
        Path | None, typer.Option("--reference", help="The checkpoint to compare with.", metavar="CHECKPOINT")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="The model that an adapter was trained on.", metavar="CHECKPOINT"),
    ] = None,
    activations: Annotated[
        bool, typer.Option("--activations/--no-activations", help="Run the probes through the model.")
    ] = True,
    drift: Annotated[bool, typer.Option("--drift/--no-drift", help="Compare with the reference.")] = True,
    probes: Annotated[
        str | None, typer.Option("--probes", help="A probe set; as set in activations.probes.", metavar="NAME")
    ] = None,
    max_probe_tokens: Annotated[
        int | None, typer.Option("--max-probe-tokens", min=1, help="Of all probes together; as set.", metavar="N")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Its folder, for a checkpoint saved without one.", metavar="DIR"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cpu, cuda or cuda:N; as set in gpu.device.", metavar="NAME"),
    ] = None,
    analyses: Analyses = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder for the artifact and the checkpoint's sketch.", metavar="DIR"),
    ] = None,
    threads: Threads = None,
    config: Config = None,
) -> None:
    """Analyses one checkpoint: every block's weights, its drift from a reference, and what both do with the probes."""
    from msgspec.structs import replace

    from archaeologist import api
    from archaeologist.cli import console, rendering

    settings = read_settings(config=config)
    options = settings.forward_options(None)
    gpu = settings.gpu_options if device is None else replace(settings.gpu_options, device=api.known_device(device))
    if probes is not None and activations:
        api.check_probes(probes, folder=options.probes_folder)
    job = api.layer_stats_job(
        checkpoint,
        reference=reference if drift else None,
        base=base,
        compute_activations=activations,
        probes=probes or settings.activations.probes,
        probes_folder=options.probes_folder,
        max_probe_tokens=max_probe_tokens or settings.activations.max_probe_tokens,
        analyses=settings.policy.analyses if analyses is None else analyses,
    )
    if tokenizer is not None:
        options = replace(options, tokenizer_path=str(tokenizer))
    threads = settings.worker.threads if threads is None else threads
    found = _excavate(job, threads=threads, output=output, activations=options, gpu=gpu)
    if as_json:
        _print_bytes(found)
    else:
        console.output().print(rendering.layer_stats(api.decode_layer_stats(found)))
        _tell_where(found)


def drift(
    base: Annotated[Path, typer.Argument(help="The checkpoint that it came from.")],
    target: Annotated[Path, typer.Argument(help="The checkpoint that it went to.")],
    adapted: Annotated[
        Path | None,
        typer.Option("--adapted", help="The model that an adapter among them was trained on.", metavar="CHECKPOINT"),
    ] = None,
    metrics: Annotated[
        str, typer.Option("--metrics", help="Of l2, cosine and frobenius, with commas.", metavar="NAMES")
    ] = "l2,cosine",
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option("--output", help="File for the artifact.", metavar="FILE")] = None,
    threads: Threads = None,
    config: Config = None,
) -> None:
    """Compares two checkpoints: how far each block moved."""
    from archaeologist import api
    from archaeologist.cli import console, rendering

    settings = read_settings(config=config)
    names = [name.strip() for name in metrics.split(",")]
    job = api.layer_drift_job(base, target, adapted=adapted, metrics=names)
    found = _excavate(job, threads=settings.worker.threads if threads is None else threads, output=output)
    if as_json:
        _print_bytes(found)
    else:
        console.output().print(rendering.layer_drift(api.decode_layer_drift(found)))
        _tell_where(found)


def _excavate(
    job: "Job",
    *,
    threads: int,
    output: Path | None,
    activations: "ForwardOptions | None" = None,
    gpu: "GpuOptions | None" = None,
) -> "Excavated":
    from archaeologist.api import excavate
    from archaeologist.cli.console import progress_bar

    with progress_bar("analysing") as show:
        return asyncio.run(
            excavate(job, threads=threads, output=output, progress=show, activations=activations, gpu=gpu)
        )


def _print_bytes(found: "Excavated") -> None:
    """Exactly the artifact, so that a checksum of the output is one of the file."""
    sys.stdout.buffer.write(found.content)
    sys.stdout.buffer.flush()


def _tell_where(found: "Excavated") -> None:
    from archaeologist.cli.console import notices

    for path in (found.artifact_path, found.sketch_path):
        if path is not None:
            notices().print(f"written: {path}")
