"""Artifacts as tables."""

from msgspec.structs import replace
from rich.console import Console, RenderableType

from archaeologist.cli import rendering
from archaeologist.statistics.drift import PairSums, global_drift
from contracts.artifacts import (
    AttentionStats,
    Comparison,
    Coverage,
    Generations,
    GenerationStats,
    GlobalWeightStats,
    LayerActivationStats,
    LayerDrift,
    LayerDriftStats,
    LayerStats,
    LayerWeightStats,
    Spectrum,
    TensorDrift,
    TensorWeights,
    Versions,
)

COVERAGE = Coverage(tensors_listed=3, tensors_read=2, bytes_listed=30, bytes_read=20)
VERSIONS = Versions(archaeologist="0", python="3")
BROKEN = LayerWeightStats(
    name="model.layers.0",
    layer_type="transformer_block",
    param_count=1234,
    l2=2.0,
    nan_count=3,
    tensors={"w": TensorWeights(dtype="BF16", shape=(2, 2), dead_rows=2)},
)


def shown(renderable: RenderableType) -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def stats(drift: dict[str, LayerDriftStats]) -> LayerStats:
    return LayerStats(
        campaign_id="c1",
        hero_id="dio",
        checkpoint_path="/c/checkpoint-2",
        checkpoint_step=2,
        created_at="2026-01-01T00:00:00Z",
        weight_stats={"model.layers.0": BROKEN},
        global_weight_stats=GlobalWeightStats(),
        drift_stats=drift,
        global_drift_stats=global_drift(drift, PairSums()) if drift else None,
        reference_checkpoint_path="/c/checkpoint-1" if drift else None,
        job_key="k",
        job_id="j",
        fingerprint="f",
        coverage=COVERAGE,
        not_computed={"activations": "later"},
        warnings=("watch \x1b[31mout",),
        versions=VERSIONS,
    )


def moved(relative: float | None, *, below: bool = False) -> LayerDriftStats:
    return LayerDriftStats(name="b", relative_l2=relative, cosine=0.5, changed_fraction=0.25, below_resolution=below)


def test_a_block_shows_norm_drift_and_what_is_wrong_with_it() -> None:
    text = shown(rendering.layer_stats(stats({"model.layers.0": moved(0.125, below=True)})))
    for words in ("1,234", "0.125", "0.500000", "25.0%", "3 NaN", "2 dead rows", "below resolution"):
        assert words in text
    assert "against /c/checkpoint-1" in text
    assert "most changed model.layers.0 (0.125)" in text


def test_what_was_not_read_computed_or_is_to_be_watched_is_said() -> None:
    text = shown(rendering.layer_stats(stats({})))
    assert "read 2 of 3 tensors" in text
    assert "not computed: activations: later" in text
    assert "warning: watch  [31mout" in text
    assert "relative L2" not in text


def test_optional_analyses_are_shown_where_they_are_small() -> None:
    activations = LayerActivationStats(
        name="model.layers.0", attention=AttentionStats(normalized_entropy=0.625, first_token_mass=0.125)
    )
    written = Generations(
        greedy=GenerationStats(distinct_2=0.25),
        sampled=GenerationStats(distinct_2=0.875),
        seed=1,
        temperature=1.0,
        max_new_tokens=32,
    )
    plain = replace(stats({}), activation_stats={"model.layers.0": replace(activations, attention=None)})
    text = shown(
        rendering.layer_stats(replace(plain, activation_stats={"model.layers.0": activations}, generations=written))
    )
    for words in ("attention", "first token", "0.625", "12.5%", "texts: distinct-2 0.875 sampled, 0.25 greedy"):
        assert words in text
        assert words not in shown(rendering.layer_stats(plain))


def test_numbers_of_matrices_are_shown_as_a_range() -> None:
    ranks = [TensorDrift(spectrum=Spectrum(stable_rank=rank, effective_rank=2 * rank)) for rank in (1.5, 2.0, 4.0)]
    drift = LayerDriftStats(name="b", tensors=dict(zip("xyz", [*ranks[:2], TensorDrift()], strict=True)))
    weights = replace(BROKEN, tensors={"w": TensorWeights(dtype="BF16", shape=(2, 2), htsr_alpha=3.25)})
    found = replace(
        stats({"a": drift, "b": LayerDriftStats(name="b", tensors={"w": ranks[2]})}), weight_stats={"b": weights}
    )
    text = shown(rendering.layer_stats(found))
    assert "stable rank of the change: 1.5 to 4, median 2, of 3 matrices" in text
    assert "effective rank of the change: 3 to 8, median 4, of 3 matrices" in text
    assert "power-law exponent: 3.25 to 3.25, median 3.25" in text


def compared(blocks: dict[str, LayerDriftStats]) -> LayerDrift:
    return LayerDrift(
        campaign_id="",
        hero_id="",
        base_checkpoint="/a",
        target_checkpoint="/b",
        base_checkpoint_step=1,
        target_checkpoint_step=2,
        created_at="2026-01-01T00:00:00Z",
        metrics=("l2",),
        drift_stats=blocks,
        global_drift_stats=global_drift(blocks, PairSums()),
        job_key="k",
        job_id="j",
        base_fingerprint="f",
        target_fingerprint="g",
        base_coverage=COVERAGE,
        target_coverage=COVERAGE,
        comparison=Comparison(compared=1),
        versions=VERSIONS,
    )


def test_a_drift_shows_its_blocks() -> None:
    blocks = {"model.norm": moved(0.5), "lm_head": LayerDriftStats(name="lm_head", nonfinite_pairs=7)}
    text = shown(rendering.layer_drift(compared(blocks)))
    assert "/a → /b" in text
    assert "most changed model.norm (0.5)" in text
    assert "7 pairs not finite" in text


def test_of_equal_checkpoints_no_block_is_called_the_most_changed() -> None:
    same = LayerDriftStats(name="b", relative_l2=0.0, changed_fraction=0.0, below_resolution=True)
    drift = {"model.layers.0": same, "lm_head": same}
    for text in (shown(rendering.layer_drift(compared(drift))), shown(rendering.layer_stats(stats(drift)))):
        assert "relative L2" in text
        assert "most changed" not in text


def test_the_most_changed_block_is_the_one_that_the_artifact_names() -> None:
    drift = compared({"model.norm": moved(0.5), "lm_head": moved(0.25)})
    named = replace(drift.global_drift_stats, most_changed_layer_relative="lm_head")
    assert "most changed lm_head (0.25)" in shown(rendering.layer_drift(replace(drift, global_drift_stats=named)))


def test_a_heat_strip_has_one_mark_a_value_relative_to_the_largest() -> None:
    assert rendering.heat_strip([0.0, 0.5, None, 1.0]).plain == "▁▅·█"


def test_a_heat_strip_of_zeros_is_flat_and_one_of_nothing_empty() -> None:
    assert rendering.heat_strip([0.0, 0.0]).plain == "▁▁"
    assert rendering.heat_strip([]).plain == ""


def test_a_block_s_strip_shows_its_parts_on_one_scale_with_the_others() -> None:
    def block(*relative: float | None) -> LayerDriftStats:
        tensors = {str(number): TensorDrift(relative_l2=value) for number, value in enumerate(relative)}
        return LayerDriftStats(name="b", relative_l2=0.1, tensors=tensors)

    blocks = {"model.layers.0": block(0.5, None, 1.0), "lm_head": block(0.25)}
    text = shown(rendering.layer_stats(stats(blocks)))
    assert "▅·█" in text
    assert "one scale for all blocks" in text
    many = block(*(number / 100 for number in range(100)))
    assert len(rendering._parts(many)) <= rendering.MOST_PARTS
    assert max(value or 0 for value in rendering._parts(many)) == 0.99


def test_findings_stand_above_the_table_with_their_severity() -> None:
    relative = {"model.embed_tokens": 9.0, "model.layers.0": 0.1, "model.layers.1": 0.1, "model.layers.2": 0.4}
    text = shown(rendering.layer_drift(compared({name: moved(value) for name, value in relative.items()})))
    assert "info  Block 2 moved 4.0 times the median since step 1." in text
    unknown = replace(compared({name: moved(value) for name, value in relative.items()}), base_checkpoint_step=0)
    assert "the median since its reference." in shown(rendering.layer_drift(unknown))
    below = {f"model.layers.{number}": moved(0.1, below=True) for number in range(3)}
    assert "warning  3 of 3 blocks are below the resolution" in shown(rendering.layer_drift(compared(below)))
