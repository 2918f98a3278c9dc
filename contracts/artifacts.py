"""The artifacts: what an analysis found, as JSON files in a campaign's folder.

Field names of the specification are kept as they are; everything more is an added field. A statistic is
``float | None``: null where it is not finite or not defined, beside a count of the values that caused it. Statistics
accumulate in float64 from the stored values; definitions and sources are in docs/statistics.md.
"""

from typing import Final, Literal

from msgspec import Struct

from contracts.prepared import prepare

ARTIFACT_VERSION: Final = 1

PERCENTILES: Final = (1, 5, 25, 50, 75, 95, 99)
"""The percentiles of a distribution in percent, in the order of its ``percentile_*`` fields."""


class TensorWeights(Struct, frozen=True, kw_only=True):
    """Weight health of one tensor. Statistics cover the finite values; the others are counted."""

    dtype: str
    """As stored: ``BF16``, ``F16``, ``F32``."""
    shape: tuple[int, ...]
    l2: float | None = None
    rms: float | None = None
    absmax: float | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    """Population standard deviation."""
    kurtosis: float | None = None
    """Excess kurtosis: 0 for a normal distribution."""
    percentile_1: float | None = None
    percentile_5: float | None = None
    percentile_25: float | None = None
    percentile_50: float | None = None
    percentile_75: float | None = None
    percentile_95: float | None = None
    percentile_99: float | None = None
    zero_fraction: float | None = None
    """Share of values that are 0 or -0."""
    nan_count: int = 0
    inf_count: int = 0
    dead_rows: int | None = None
    """Rows of a matrix whose norm is below 1e-6 of the median row's; null for what is not a matrix."""
    dead_columns: int | None = None
    growth: float | None = None
    """``l2`` over the reference's, minus 1; null without a reference or where the reference is 0."""
    htsr_alpha: float | None = None
    """Exponent of the power law of the largest eigenvalues of WᵀW, where the analysis ``htsr`` was asked for."""
    htsr_tail: int | None = None
    """Eigenvalues that follow it."""
    htsr_distance: float | None = None
    """Kolmogorov-Smirnov distance between them and the law: 0 fits exactly."""


class ExpertWeights(Struct, frozen=True, kw_only=True):
    """The experts of one mixture in a block: each expert's tensors together, and all experts'."""

    count: int
    experts: tuple[int, ...] = ()
    """Their numbers, ascending; the arrays are aligned with it."""
    expert_l2: tuple[float | None, ...] = ()
    l2: float | None = None
    """Of all experts together."""
    param_count: int = 0


class LayerWeightStats(Struct, frozen=True, kw_only=True):
    """Weight statistics of one block: the specification's fields, the block as a whole, each tensor."""

    name: str
    layer_type: str
    """transformer_block, embedding, norm, output or other."""
    weight_norms: dict[str, float | None] = {}
    """L2 norm of each weight, by its name within the block."""
    bias_norms: dict[str, float | None] = {}
    param_count: int = 0
    l2: float | None = None
    """Root of the sum of squares over the block's tensors."""
    growth: float | None = None
    nan_count: int = 0
    inf_count: int = 0
    tensors: dict[str, TensorWeights] = {}
    experts: dict[str, ExpertWeights] = {}
    """By mixture, ``mlp.experts``, where each expert's tensors are stored by its number."""


class GlobalWeightStats(Struct, frozen=True, kw_only=True):
    """Norms over all tensors. The last four fields are the specification's and always null here."""

    avg_weight_norm: float | None = None
    max_weight_norm: float | None = None
    min_weight_norm: float | None = None
    avg_drift_l2: float | None = None
    max_drift_l2: float | None = None
    most_changed_layer: str | None = None
    least_changed_layer: str | None = None
    l2: float | None = None
    """Norm of all parameters together, each counted once."""
    param_count: int = 0
    nan_count: int = 0
    inf_count: int = 0


class ActivationDistribution(Struct, frozen=True, kw_only=True):
    """How the values of some positions are distributed. Statistics cover the finite values; the others are counted."""

    count: int = 0
    """Finite values."""
    mean: float | None = None
    std: float | None = None
    """Population standard deviation."""
    rms: float | None = None
    min: float | None = None
    max: float | None = None
    absmax: float | None = None
    kurtosis: float | None = None
    """Excess kurtosis. High is normal: look at its change."""
    percentile_1: float | None = None
    percentile_5: float | None = None
    percentile_25: float | None = None
    percentile_50: float | None = None
    percentile_75: float | None = None
    percentile_95: float | None = None
    percentile_99: float | None = None
    zero_fraction: float | None = None
    nan_count: int = 0
    inf_count: int = 0


class AttentionStats(Struct, frozen=True, kw_only=True):
    """Where a block's attention looks: means over heads and some positions of the probes, no sequence's first one."""

    entropy: float | None = None
    """Of the weights of one query and head, in nats."""
    normalized_entropy: float | None = None
    """Over that of looking at all visible keys alike: 0 is one key, 1 is all."""
    first_token_mass: float | None = None
    """Weight on the sequence's first token."""
    queries: int = 0
    heads: int = 0
    undefined: int = 0
    """Queries times heads that are left out because a score is NaN or infinite."""


class LayerActivationStats(Struct, frozen=True, kw_only=True):
    """One block's output over the probes. Every position except padding and each sequence's first."""

    name: str
    mean: float | None = None
    std: float | None = None
    max: float | None = None
    min: float | None = None
    percentile_1: float | None = None
    percentile_99: float | None = None
    zero_fraction: float | None = None

    distribution: ActivationDistribution = ActivationDistribution()
    """The same and more."""
    first_token: ActivationDistribution | None = None
    """Of each sequence's first position, which many models use as a sink."""
    by_skill: dict[str, ActivationDistribution] = {}
    submodules: dict[str, ActivationDistribution] = {}
    """Outputs of parts of the block, ``attn`` and ``mlp``, where they were asked for."""
    positions: int = 0
    token_norm: float | None = None
    """Mean L2 norm of a position's hidden state."""
    massive_count: int = 0
    """Values above 100 and above 1000 times the median magnitude of their hidden state, first positions included."""
    massive_channels: tuple[int, ...] = ()
    outlier_channels: int = 0
    """How many channels have a magnitude of at least 6 in at least 6 % of the positions."""
    neurons: int | None = None
    """Neurons of the block's MLP; null where it has none of the usual form, experts for one."""
    dead_neurons: int | None = None
    """Those whose largest magnitude over all positions is at most 0.001 of the median neuron's."""
    rankme: float | None = None
    """Effective rank of the hidden states: exp of the entropy of their normalised singular values."""
    rankme_tokens: int = 0
    """Positions it was computed from, evenly spaced over all; compare only with the same number."""
    anisotropy: float | None = None
    """Mean cosine between the hidden states of two positions."""
    feature_variance: float | None = None
    """Mean over the channels of the variance over positions."""
    attention: AttentionStats | None = None
    """Where the analysis ``attention`` was asked for."""


class ProbeInfo(Struct, frozen=True, kw_only=True):
    """The probes that were run."""

    dataset_id: str
    num_sequences: int
    total_tokens: int
    source_file: str
    sha256: str = ""
    """Of the probes' texts and skills, in order; compare only artifacts with the same."""
    tokenizer_sha256: str = ""
    """Of the token ids, in order: equal where text and tokenizer are."""
    tokenizer_path: str = ""
    tokens_by_skill: dict[str, int] = {}
    truncated: bool = False
    """Whether ``max_probe_tokens`` cut the last sequence or left some out, or the set has more than 256 probes."""
    batches: tuple[tuple[int, ...], ...] = ()
    """Which sequences ran together, by their number; other batches change 16-bit results in the last bits."""


class ForwardInfo(Struct, frozen=True, kw_only=True):
    """How the model was run."""

    way: str
    """``streamed``: one block's weights at a time; ``whole``: the model was loaded whole, see ``reason``."""
    reason: str | None = None
    device: str = "cpu"
    """``cpu``, ``cuda:0``."""
    device_name: str | None = None
    """The GPU's; null on the CPU."""
    peak_gpu_bytes: int | None = None
    """The most that the tensors' allocator held of the GPU's memory; CUDA's own some hundred MB come on top."""
    threads: int = 1
    """Torch's own, for each pass; in float32 the last bits depend on it."""
    dtype: str = ""
    attention: str = ""
    """Implementation of attention: ``sdpa``, ``eager``."""
    steps: tuple[str, ...] = ()
    """What had to be given up on the way, "out of GPU memory at 1024 tokens a batch: 512" for instance."""


class OutputStats(Struct, frozen=True, kw_only=True):
    """The model's predictions on the probes: at every position but each sequence's last."""

    positions: int = 0
    """Those that count."""
    entropy: float | None = None
    """Mean entropy of the next token's distribution, in nats."""
    loss: float | None = None
    """Mean negative log-likelihood of the probes' own next tokens, in nats."""
    nonfinite_positions: int = 0
    """Positions left out because a logit is NaN or +infinity, or all are -infinity."""


class OutputDrift(Struct, frozen=True, kw_only=True):
    """How far the predictions are from the reference's, over the same positions."""

    positions: int = 0
    kl: float | None = None
    """Mean KL(reference ‖ target), in nats."""
    js: float | None = None
    """Mean Jensen-Shannon divergence, in nats, at most ln 2."""
    top1_agreement: float | None = None


class Similarity(Struct, frozen=True, kw_only=True):
    """Debiased linear CKA of a block's hidden states with the reference's.

    1: the same up to rotation and scale; about 0: unrelated.
    """

    cka: float | None = None
    cka_without_outliers: float | None = None
    """Without the channels with the largest magnitudes, which can dominate it."""
    positions: int = 0
    by_skill: dict[str, float | None] = {}


class FunctionalDrift(Struct, frozen=True, kw_only=True):
    """What the change of the weights did to the model's function on the probes."""

    output: OutputDrift | None = None
    """Null for a model without a head."""
    output_by_skill: dict[str, OutputDrift] = {}
    similarity: dict[str, Similarity] = {}
    """By block."""
    reference_output: OutputStats | None = None


class Alert(Struct, frozen=True, kw_only=True):
    """A sign of collapse or of broken weights, judged against the campaign's history."""

    severity: Literal["warning", "critical"]
    family: str
    """representation, entropy, repetition, divergence, weights."""
    metric: str
    block: str | None = None
    value: float | None = None
    baseline: float | None = None
    """Median of the history, or the value of the reference or of the best checkpoint."""
    checkpoints: int = 0
    """How many earlier checkpoints it was judged against."""
    confidence: Literal["low", "normal"] = "normal"
    message: str = ""


class Spectrum(Struct, frozen=True, kw_only=True):
    """Singular values of a matrix in four numbers. A rank is from 1, one direction, to the smaller side, all alike."""

    sigma_1: float | None = None
    """Largest singular value."""
    stable_rank: float | None = None
    """Squared Frobenius norm over ``sigma_1`` squared; null where all is 0."""
    participation_rank: float | None = None
    """Square of the sum of squared singular values over the sum of their squares."""
    effective_rank: float | None = None
    """exp of the entropy of the singular values over their sum."""


class GenerationStats(Struct, frozen=True, kw_only=True):
    """How much texts that were generated in one way repeat themselves and each other, in tokens."""

    texts: int = 0
    tokens: int = 0
    """Of all texts together; compare only about the same number."""
    ended: int = 0
    """Texts that the model ended itself before the limit."""
    distinct_1: float | None = None
    """Different tokens over all tokens, of all texts together."""
    distinct_2: float | None = None
    """The same of pairs of neighbours."""
    distinct_3: float | None = None
    repeated_4: float | None = None
    """Mean over the texts of the share of runs of four tokens that repeat an earlier one of the same text."""


class GeneratedText(Struct, frozen=True, kw_only=True):
    """One prompt and its continuations, each cut at 300 characters. What a model wrote: never trust it as markup."""

    prompt: str
    skill: str | None = None
    greedy: str = ""
    sampled: str = ""


class Generations(Struct, frozen=True, kw_only=True):
    """Short continuations of some probes."""

    greedy: GenerationStats
    """The likeliest token each time. Small healthy models loop here: look at the change."""
    sampled: GenerationStats
    seed: int
    temperature: float
    max_new_tokens: int
    texts: tuple[GeneratedText, ...] = ()


class TensorDrift(Struct, frozen=True, kw_only=True):
    """Drift of one tensor against the reference. Sums cover the pairs in which both values are finite."""

    l2: float | None = None
    relative_l2: float | None = None
    """``l2`` over the reference's norm; null where that is 0."""
    cosine: float | None = None
    """Null where either side is all zero."""
    one_minus_cosine: float | None = None
    """From the norms, in a form that keeps its digits near 0."""
    changed_fraction: float | None = None
    """Share of values whose bits differ; where the dtypes differ, whose values differ."""
    below_resolution: bool | None = None
    """True: fewer than half of the values moved, and no farther than rounding moves them, so rounding dominates the
    drift. Null for an empty tensor."""
    sign_flips: int = 0
    """Values that went from one strict sign to the other."""
    max_change: float | None = None
    """Largest absolute change of one value."""
    nonfinite_pairs: int = 0
    """Pairs left out because a side is NaN or infinite."""
    spectrum: Spectrum | None = None
    """Of target minus reference, where the analysis ``spectra`` was asked for."""


class ExpertDrift(Struct, frozen=True, kw_only=True):
    """Drift of one mixture's experts in a block; a router's drift stands with the block's tensors."""

    count: int
    experts: tuple[int, ...] = ()
    """The numbers of those that were compared, ascending; the arrays are aligned with it."""
    expert_l2: tuple[float | None, ...] = ()
    expert_relative_l2: tuple[float | None, ...] = ()
    l2: float | None = None
    """Of all experts together."""
    relative_l2: float | None = None
    most_changed: int | None = None
    """The expert with the largest relative L2; null where none moved."""


class LayerDriftStats(Struct, frozen=True, kw_only=True):
    """Drift of one block: the specification's fields, the block as a whole, each tensor."""

    name: str
    weight_l2: dict[str, float | None] = {}
    weight_cosine: dict[str, float | None] = {}
    total_l2: float | None = None
    """Sum of the tensors' L2, as in the specification. It favours blocks with more tensors: see ``relative_l2``."""
    total_cosine: float | None = None
    """Mean of the tensors' cosines, as in the specification."""
    l2: float | None = None
    relative_l2: float | None = None
    cosine: float | None = None
    one_minus_cosine: float | None = None
    changed_fraction: float | None = None
    below_resolution: bool | None = None
    """True: at least half of the squared drift is of tensors below the resolution, or nothing moved."""
    sign_flips: int = 0
    max_change: float | None = None
    nonfinite_pairs: int = 0
    tensors: dict[str, TensorDrift] = {}
    experts: dict[str, ExpertDrift] = {}
    """By mixture, where each expert's tensors are stored by its number."""


class GlobalDriftStats(Struct, frozen=True, kw_only=True):
    """Drift over all tensors and blocks. ``avg`` and ``max`` are over tensors, the layers follow ``total_l2``."""

    avg_drift_l2: float | None = None
    max_drift_l2: float | None = None
    most_changed_layer: str | None = None
    least_changed_layer: str | None = None
    most_changed_layer_relative: str | None = None
    least_changed_layer_relative: str | None = None
    l2: float | None = None
    relative_l2: float | None = None
    cosine: float | None = None
    one_minus_cosine: float | None = None
    changed_fraction: float | None = None
    blocks_below_resolution: int = 0
    blocks: int = 0


class Coverage(Struct, frozen=True, kw_only=True):
    """How much of a checkpoint was read, of what its index lists."""

    tensors_listed: int
    tensors_read: int
    bytes_listed: int
    bytes_read: int
    skipped: dict[str, str] = {}
    """Tensors left out, each with the reason."""
    tied: dict[str, str] = {}
    """Tensors equal to another one, counted once: the tied name and the name it was counted under."""
    untied: tuple[str, ...] = ()
    """Heads whose configuration says tied but whose bytes differ from the embedding's; both are counted."""


class Comparison(Struct, frozen=True, kw_only=True):
    """Which tensors of target and reference were compared."""

    compared: int
    only_in_target: tuple[str, ...] = ()
    only_in_reference: tuple[str, ...] = ()
    shape_differs: dict[str, str] = {}
    """Name → "target shape against reference shape"."""
    dtype_differs: dict[str, str] = {}
    """Compared all the same, by value."""
    compared_as: str = ""
    """What was compared with what, in words, where one or both are adapters."""


class SketchInfo(Struct, frozen=True, kw_only=True):
    """The target's stored sketch; two sketches compare only when version, seed and width are equal."""

    version: int
    seed: int
    width: int
    path: str
    """From the campaign's folder; where the artifact belongs to no campaign's, from the artifact's own."""


class Versions(Struct, frozen=True, kw_only=True):
    """What computed the artifact."""

    archaeologist: str
    python: str
    numpy: str | None = None
    numba: str | None = None
    torch: str | None = None
    transformers: str | None = None


class AdapterChange(Struct, frozen=True, kw_only=True):
    """What an adapter does to one weight."""

    rank: int
    scaling: float
    """s in s·B·A."""
    l2: float | None = None
    """Norm of s·B·A, from r by r Gram matrices."""


class AdapterInfo(Struct, frozen=True, kw_only=True):
    """The adapter that a checkpoint holds."""

    base_named: str | None = None
    """The base model as adapter_config.json names it."""
    base_path: str | None = None
    """Where it was found; null: it was not, and nothing that needs it was computed."""
    base_fingerprint: str | None = None
    starts_from: str | None = None
    """``pissa`` for instance: A and B began as a part of the base's weights."""
    changes: dict[str, AdapterChange] = {}
    """By the weight's canonical name."""


Subject = Literal["model", "adapter_change", "adapted_model"]
"""What statistics are of: a model's weights; the change s·B·A that an adapter makes; its base's weights with it."""


class LayerStats(Struct, frozen=True, kw_only=True):
    """Result of a ``layer_stats`` job: ``layer_stats/ckpt-{step:06d}.layer_stats.json``."""

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    checkpoint_path: str
    checkpoint_step: int
    model_ref: str = ""
    created_at: str

    weight_stats: dict[str, LayerWeightStats] = {}
    """By block, from the embedding to the head."""
    global_weight_stats: GlobalWeightStats
    activation_stats: dict[str, LayerActivationStats] = {}
    probe_info: ProbeInfo | None = None
    forward: ForwardInfo | None = None
    output_stats: OutputStats | None = None
    output_stats_by_skill: dict[str, OutputStats] = {}
    functional_drift: FunctionalDrift | None = None
    generations: Generations | None = None
    """Where the analysis ``generations`` was asked for."""
    alerts: tuple[Alert, ...] = ()
    drift_stats: dict[str, LayerDriftStats] = {}
    reference_checkpoint_path: str | None = None
    global_drift_stats: GlobalDriftStats | None = None
    compute_duration_sec: float = 0.0
    device: str = "cpu"

    job_key: str
    job_id: str
    reference_checkpoint_step: int | None = None
    fingerprint: str
    reference_fingerprint: str | None = None
    architecture: str | None = None
    """First of the ``architectures`` in the checkpoint's config.json."""
    subject: Subject = "model"
    """What ``weight_stats`` and ``drift_stats`` are of; activations are always a model's."""
    adapter: AdapterInfo | None = None
    coverage: Coverage
    reference_coverage: Coverage | None = None
    comparison: Comparison | None = None
    sketch: SketchInfo | None = None
    not_computed: dict[str, str] = {}
    """What was asked for and is missing: the name of the part and why, ``{"activations": "…"}`` for instance."""
    warnings: tuple[str, ...] = ()
    worker: str | None = None
    versions: Versions
    timings: dict[str, float] = {}
    """Seconds by stage: load (the compiled code), open, walk."""


class BlockDrift(Struct, frozen=True, kw_only=True):
    """A block in the specification's ``layer_drift`` map."""

    l2_total: float | None = None
    params: dict[str, float | None] = {}
    """L2 by the tensor's full name."""


class LayerDrift(Struct, frozen=True, kw_only=True):
    """Result of a ``layer_drift`` job: ``layer_drift/drift-{base:06d}-to-{target:06d}.json``."""

    version: int = ARTIFACT_VERSION
    success: bool = True
    campaign_id: str
    hero_id: str
    base_checkpoint: str
    target_checkpoint: str
    base_checkpoint_step: int
    target_checkpoint_step: int
    created_at: str
    metrics: tuple[str, ...]

    layer_drift: dict[str, BlockDrift] = {}
    avg_drift_l2: float | None = None
    max_drift_l2: float | None = None
    most_changed_layer: str | None = None
    least_changed_layer: str | None = None
    drift_stats: dict[str, LayerDriftStats] = {}
    global_drift_stats: GlobalDriftStats
    compute_duration_sec: float = 0.0
    device: str = "cpu"

    job_key: str
    job_id: str
    base_fingerprint: str
    target_fingerprint: str
    target_subject: Subject = "model"
    base_subject: Subject = "model"
    adapter: AdapterInfo | None = None
    """The target's."""
    base_coverage: Coverage
    target_coverage: Coverage
    comparison: Comparison
    warnings: tuple[str, ...] = ()
    worker: str | None = None
    versions: Versions
    timings: dict[str, float] = {}


Artifact = LayerStats | LayerDrift


# Summaries: what a campaign's artifacts say together. They hold no time of their own making, so that one brought up to
# date and one built anew are equal byte for byte.


class LeftOut(Struct, frozen=True, kw_only=True):
    """A file that takes no part in a summary."""

    file: str
    """Relative to the campaign's ``analysis`` folder."""
    code: str
    reason: str


class LayerTimeline(Struct, frozen=True, kw_only=True):
    """One block's drift over time: arrays aligned with the timeline's ``checkpoints``, null where it has none."""

    name: str
    drift_l2: tuple[float | None, ...] = ()
    """``total_l2``, as in the specification."""
    drift_cosine: tuple[float | None, ...] = ()
    """``total_cosine``, as in the specification."""
    layer_type: str = "other"
    l2: tuple[float | None, ...] = ()
    relative_l2: tuple[float | None, ...] = ()
    one_minus_cosine: tuple[float | None, ...] = ()
    changed_fraction: tuple[float | None, ...] = ()
    below_resolution: tuple[bool | None, ...] = ()
    cka: tuple[float | None, ...] = ()
    """Of the hidden states, with the reference's."""


class DriftTimeline(Struct, frozen=True, kw_only=True):
    """The drift of every block over time: ``summaries/layer_drift_timeline.json``.

    Each checkpoint's drift is the one in its artifact, against the reference named there.
    """

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    checkpoints: tuple[int, ...] = ()
    """Steps of the checkpoints that were compared with a reference, ascending."""
    layers: dict[str, LayerTimeline] = {}
    """By block, from the embedding to the head."""
    reference_steps: tuple[int | None, ...] = ()
    relative_l2: tuple[float | None, ...] = ()
    """Of the whole model; so are the following."""
    l2: tuple[float | None, ...] = ()
    one_minus_cosine: tuple[float | None, ...] = ()
    changed_fraction: tuple[float | None, ...] = ()
    kl: tuple[float | None, ...] = ()
    """KL(reference ‖ target) of the predictions, in nats."""
    js: tuple[float | None, ...] = ()
    top1_agreement: tuple[float | None, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


class SubmoduleTimeline(Struct, frozen=True, kw_only=True):
    """One tensor's drift over time: arrays aligned with the timeline's ``checkpoints``, null where it has none."""

    name: str
    """As the checkpoint has it."""
    block: str
    l2: tuple[float | None, ...] = ()
    relative_l2: tuple[float | None, ...] = ()
    one_minus_cosine: tuple[float | None, ...] = ()
    changed_fraction: tuple[float | None, ...] = ()
    below_resolution: tuple[bool | None, ...] = ()


class SubmoduleDriftTimeline(Struct, frozen=True, kw_only=True):
    """The drift of every tensor over time, as far as it was asked for; no file has all of it.

    Each checkpoint's drift is the one in its artifact, against the reference named there.
    """

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    checkpoints: tuple[int, ...] = ()
    """Steps of the checkpoints that were compared with a reference, ascending."""
    submodules: dict[str, SubmoduleTimeline] = {}
    """By the tensor's name, in the newest artifact's order."""
    reference_steps: tuple[int | None, ...] = ()


class LayerHealthTimeline(Struct, frozen=True, kw_only=True):
    """One block's health over time: arrays aligned with the timeline's ``checkpoints``, null where it has none."""

    name: str
    layer_type: str = "other"
    weight_l2: tuple[float | None, ...] = ()
    weight_nonfinite: tuple[int | None, ...] = ()
    """NaN and infinite weights."""
    activation_mean: tuple[float | None, ...] = ()
    activation_std: tuple[float | None, ...] = ()
    activation_percentile_1: tuple[float | None, ...] = ()
    activation_percentile_99: tuple[float | None, ...] = ()
    activation_nonfinite: tuple[int | None, ...] = ()
    rankme: tuple[float | None, ...] = ()
    anisotropy: tuple[float | None, ...] = ()


class HealthAlert(Alert, frozen=True, kw_only=True):
    """An alert and the checkpoint that raised it."""

    checkpoint_step: int


class HealthTimeline(Struct, frozen=True, kw_only=True):
    """The health of weights, activations and predictions over time: ``summaries/health_timeline.json``."""

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    checkpoints: tuple[int, ...] = ()
    """Steps of all analysed checkpoints, ascending."""
    created_at: tuple[str, ...] = ()
    layers: dict[str, LayerHealthTimeline] = {}
    """By block, from the embedding to the head."""
    weight_l2: tuple[float | None, ...] = ()
    """Of the whole model; so are the following."""
    weight_nonfinite: tuple[int | None, ...] = ()
    entropy: tuple[float | None, ...] = ()
    """Of the predictions on the probes, in nats."""
    loss: tuple[float | None, ...] = ()
    probes: tuple[str | None, ...] = ()
    """SHA-256 over the architecture, the probes' and the token ids' hashes and ``rankme_tokens``: only checkpoints with
    the same one compare."""
    alerts: tuple[HealthAlert, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


StabilityClass = Literal[
    "bit_frozen", "below_resolution", "settled", "directed", "diffusive", "thrashing", "undetermined"
]


class LayerStability(Struct, frozen=True, kw_only=True):
    """How one block moves. Distances marked as estimates come from sketches."""

    name: str
    layer_type: str = "other"
    stability: StabilityClass
    reason: str
    """Why this class, with the numbers."""
    intervals: int = 0
    """Intervals of the window in which the block's path is known."""
    effective_intervals: float | None = None
    """(Σd)² / Σd²: how many intervals of equal length the path amounts to."""
    straightness: float | None = None
    """S: distance from the window's first to its last checkpoint over the length of the path. An estimate."""
    scaled_straightness: float | None = None
    """S · √(effective intervals): about 1 for a random walk, more for a direction kept."""
    lag1_cosine: float | None = None
    """Mean cosine of an interval's change with the one before. An estimate."""
    path_length: float | None = None
    """Sum of the intervals' L2."""
    displacement: float | None = None
    """L2 from the window's first to its last checkpoint. An estimate."""
    latest_rate: float | None = None
    """Relative L2 a step in the last interval."""
    peak_rate: float | None = None
    """Its largest value over the whole campaign."""
    changed_fraction: float | None = None
    """Median over the window's intervals in which it was measured."""
    intervals_below_resolution: int = 0
    """Of those in which something changed."""
    intervals_measured: int = 0
    """Intervals of the window whose changed fraction was measured: their artifact has the one before as reference."""


class LayerTotal(Struct, frozen=True, kw_only=True):
    """How far a block moved in all artifacts together."""

    layer: str
    total_drift: float
    """Sum of ``total_l2``, as in the specification."""
    total_relative: float | None = None
    """Sum of the relative L2, which does not favour blocks with more tensors."""


class StabilityReport(Struct, frozen=True, kw_only=True):
    """Which blocks are stable: ``summaries/stability_report.json``."""

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    checkpoints: tuple[int, ...] = ()
    """Steps of the window: the newest analysed checkpoints."""
    is_estimate: bool = True
    """Straightness and direction are estimated from sketches; so is drift where an artifact has another reference."""
    layers: dict[str, LayerStability] = {}
    frozen: tuple[str, ...] = ()
    """Blocks of class ``bit_frozen``."""
    below_resolution: tuple[str, ...] = ()
    settled: tuple[str, ...] = ()
    directed: tuple[str, ...] = ()
    diffusive: tuple[str, ...] = ()
    thrashing: tuple[str, ...] = ()
    undetermined: tuple[str, ...] = ()
    top_movers: tuple[LayerTotal, ...] = ()
    """All blocks over the whole campaign, the one with the largest ``total_drift`` first."""
    judgements: dict[str, float] = {}
    """The thresholds, which have no source but judgement."""
    left_out: tuple[LeftOut, ...] = ()


class SkillInterval(Struct, frozen=True, kw_only=True):
    """From one evaluated and analysed checkpoint to the next."""

    base_step: int
    target_step: int
    score_change: float
    standard_error: float | None = None
    """Of the change; null where the sample size is not known or the score is no proportion."""
    drift: Literal["exact", "estimate"] | None = None
    """Where the blocks' drift comes from: an artifact, or sketches; null: there is none."""
    is_used: bool = False
    reason: str | None = None
    """Why it is left out."""


class BlockImpact(Struct, frozen=True, kw_only=True):
    """How a block's drift goes along with a skill's score."""

    layer: str
    layer_type: str = "other"
    spearman: float | None = None
    """Of the score's change with the block's relative drift, over the intervals used."""
    p_adjusted: float | None = None
    """Two-sided, adjusted for the number of blocks; null below 6 intervals."""
    spearman_share: float | None = None
    """The same with the block's share of the interval's drift, the sum of all blocks' relative drifts."""
    p_adjusted_share: float | None = None


class SkillFinding(Struct, frozen=True, kw_only=True):
    """What can be said of one skill."""

    skill: str
    checkpoints: tuple[int, ...] = ()
    """Steps at which it was evaluated, ascending."""
    scores: tuple[float, ...] = ()
    num_samples: tuple[int | None, ...] = ()
    intervals: tuple[SkillInterval, ...] = ()
    intervals_used: int = 0
    support: Literal["none", "ranking", "exploratory", "tested"] = "none"
    """none: below 3 intervals; ranking: below 6; exploratory: 6 and 7; tested: from 8."""
    method: Literal["exact", "monte_carlo"] | None = None
    """How p was found: over all orders of the changes, or over random ones."""
    permutations: int = 0
    layers: tuple[BlockImpact, ...] = ()
    """The largest absolute Spearman first."""
    blocks_left_out: dict[str, str] = {}
    """Blocks that take no part, and why."""
    supports: str = ""
    """What these data support."""
    does_not_support: str = ""


class SkillImpact(Struct, frozen=True, kw_only=True):
    """Which blocks move when a skill's score does: ``summaries/skill_impact.json``."""

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    skills: dict[str, SkillFinding] = {}
    judgements: dict[str, float] = {}
    left_out: tuple[LeftOut, ...] = ()


class SkillScore(Struct, frozen=True, kw_only=True):
    """One evaluation."""

    step: int
    score: float
    num_samples: int | None = None


class SkillHistory(Struct, frozen=True, kw_only=True):
    """Every skill's scores, as heard on the bus: ``analysis/skills.json``."""

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    skills: dict[str, tuple[SkillScore, ...]] = {}
    """By skill, ascending by step; one a step, the last heard."""


class EstimatedDrift(Struct, frozen=True, kw_only=True):
    """A distance estimated from sketches."""

    l2: float
    relative_l2: float | None = None
    """Over the base's norm; null where that is 0 or not known."""
    spread: float = 0.0
    """Relative standard deviation of the estimate; 0: exact, all tensors are kept whole. At most double."""
    tensors: int = 0


class DriftEstimate(Struct, frozen=True, kw_only=True):
    """How far two analysed checkpoints are apart, from their sketches; neither needs to exist any more."""

    version: int = ARTIFACT_VERSION
    campaign_id: str
    hero_id: str
    base_step: int
    target_step: int
    is_estimate: bool = True
    whole: EstimatedDrift
    layers: dict[str, EstimatedDrift] = {}
    not_compared: tuple[str, ...] = ()
    """Tensors on one side only, or of another size."""


prepare(__name__)
