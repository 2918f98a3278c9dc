"""What the forward pass found. No torch here: a job that runs no model says with it why."""

from msgspec import Struct

from contracts.artifacts import ForwardInfo, FunctionalDrift, Generations, LayerActivationStats, OutputStats, ProbeInfo


class Found(Struct, frozen=True, kw_only=True):
    """What the forward pass found, in the artifact's fields."""

    activation_stats: dict[str, LayerActivationStats] = {}
    probe_info: ProbeInfo | None = None
    forward: ForwardInfo | None = None
    output_stats: OutputStats | None = None
    output_stats_by_skill: dict[str, OutputStats] = {}
    functional_drift: FunctionalDrift | None = None
    generations: Generations | None = None
    not_computed: dict[str, str] = {}
