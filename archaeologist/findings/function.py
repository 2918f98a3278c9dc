"""What the divergence of the predictions supports."""

from archaeologist.findings.wording import counted, finite, number, percent
from contracts.artifacts import OutputDrift, ProbeInfo
from contracts.findings import Evidence, Finding


def function(
    output: OutputDrift | None,
    *,
    step: int | None,
    reference_step: int | None,
    probes: ProbeInfo | None = None,
) -> Finding | None:
    """How far the predictions are from the reference's; None where that was not measured.

    Args:
        output: Of one checkpoint.
        step: Its step.
        reference_step: The reference's.
        probes: What it was measured on, where that is known.
    """
    kl = finite(output.kl) if output else None
    if output is None or kl is None:
        return None
    agreement = finite(output.top1_agreement)
    same = "" if agreement is None else f"; the first choice is the same at {percent(agreement)} of positions"
    whose = "the reference's" if reference_step is None else f"step {reference_step}'s"
    positions = f"{counted(output.positions, 'position')} of the probes" if output.positions else "the probes"
    return Finding(
        topic="function",
        severity="info",
        text=f"The predictions are {number(kl)} nats (KL) from {whose}{same}.",
        basis=f"{positions}{f' {probes.dataset_id}' if probes else ''}",
        evidence=Evidence(metric="kl", step=step),
    )
