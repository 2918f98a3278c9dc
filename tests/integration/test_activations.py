"""A job's activations against a plain run with hooks, and what becomes of them when something is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from archaeologist.excavation import layer_stats
from archaeologist.probes.sets import load
from contracts.artifacts import PERCENTILES, ActivationDistribution, LayerStats
from contracts.messages import (
    Excavation,
    ForwardOptions,
    GpuOptions,
    JobOptions,
)
from tests.fixtures.jobs import layer_stats_job, side
from tests.fixtures.models import model, saved
from tests.fixtures.tokenizers import save_tokenizer

VOCABULARY = 300
Floats = npt.NDArray[np.float64]


def checkpoint(folder: Path, made: PreTrainedModel, *, has_tokenizer: bool = True) -> Path:
    saved(made, folder)
    return save_tokenizer(folder, vocabulary=VOCABULARY, has_start=True) if has_tokenizer else folder


def drifted(made: PreTrainedModel, *, relative: float = 0.05) -> PreTrainedModel:
    """The model, a little further."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((noise * relative * parameter.float().abs().mean()).to(parameter.dtype))
    return made


def analysed(target: Path, reference: Path | None = None, *, probes: str = "default", **options: Any) -> LayerStats:
    """The artifact of a job on the two folders."""
    sides = [side(path, step) for step, path in enumerate((reference, target), start=1) if path is not None]
    limit = options.pop("max_probe_tokens", 4096)
    job = layer_stats_job(
        sides[-1],
        sides[0] if reference else None,
        options=JobOptions(probe_dataset=probes, max_probe_tokens=limit, analyses=options.pop("analyses", ())),
    )
    folder = target.parent / "artifacts"
    folder.mkdir(exist_ok=True)
    excavation = Excavation(
        job=job,
        artifact_path=str(folder / "a.tmp"),
        sketch_path=options.pop("sketch_path", None),
        gpu=options.pop("gpu", GpuOptions(device="cpu")),
        activations=ForwardOptions(**options),
    )
    artifact, _ = layer_stats.excavate(excavation, lambda _: None)
    return artifact


# The oracle: the loaded model with hooks, on the batches that the artifact names.


def hooked(made: PreTrainedModel, artifact: LayerStats) -> tuple[dict[str, Floats], Floats, npt.NDArray[np.bool_]]:
    """Each layer's outputs by position, the logits, and which positions are first ones; float64."""
    assert artifact.probe_info is not None
    tokenizer = AutoTokenizer.from_pretrained(artifact.checkpoint_path, local_files_only=True)
    texts = [probe.text for probe in load(artifact.probe_info.dataset_id).probes]
    sequences = [tokenizer(text)["input_ids"] for text in texts]
    kept: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        return lambda _module, _inputs, output: kept[name].append(output[0] if isinstance(output, tuple) else output)

    def measure(name: str) -> Callable[[Any, Any], None]:
        return lambda _module, inputs: kept[name].append(inputs[0])

    layers = getattr(made, made.base_model_prefix).layers
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(measure(f"neurons.{number}"))
        for number, layer in enumerate(layers)
    ]
    hooks += [layer.register_forward_hook(keep(f"model.layers.{number}")) for number, layer in enumerate(layers)]
    rows: dict[str, list[torch.Tensor]] = {}
    first: list[bool] = []
    for batch in artifact.probe_info.batches:
        lengths = [len(sequences[number]) for number in batch]
        ids = torch.full((len(batch), max(lengths)), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(batch):
            ids[row, : lengths[row]] = torch.tensor(sequences[number])
            mask[row, : lengths[row]] = 1
        kept.update({f"{name}.{number}": [] for number in range(len(layers)) for name in ("model.layers", "neurons")})
        with torch.inference_mode():
            logits = made(input_ids=ids, attention_mask=mask if min(lengths) < max(lengths) else None).logits
        for name, (hidden,) in (kept | {"logits": [logits]}).items():
            rows.setdefault(name, []).extend(hidden[row, :length] for row, length in enumerate(lengths))
        first += [position == 0 for length in lengths for position in range(length)]
    for hook in hooks:
        hook.remove()
    wide = {name: torch.cat(parts).double().numpy() for name, parts in rows.items()}
    return wide, wide.pop("logits"), np.array(first)


def check(found: ActivationDistribution | None, values: Floats) -> None:
    assert found is not None
    assert found.count == values.size
    assert found.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
    assert found.std == pytest.approx(values.std(), rel=1e-9)
    assert (found.min, found.max) == (values.min(), values.max())
    said = [getattr(found, f"percentile_{percent}") for percent in PERCENTILES]
    assert said == list(np.percentile(values, PERCENTILES))
    assert found.zero_fraction == np.count_nonzero(values == 0) / values.size


def log_softmax(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def debiased_cka(x: Floats, y: Floats) -> float:
    """From the definition of the unbiased HSIC (Song et al. 2012)."""

    def hsic(a: Floats, b: Floats) -> float:
        n = len(a)
        k, m = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        whole = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
        return float(whole / (n * (n - 3)))

    return float(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)))


def effective_rank(values: Floats) -> float:
    sigmas = np.linalg.svd(values, compute_uv=False)
    shares = sigmas / sigmas.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def with_dead_neurons(made: PreTrainedModel) -> PreTrainedModel:
    """The model with three neurons of each block that say next to nothing."""
    with torch.no_grad():
        for layer in getattr(made, made.base_model_prefix).layers:
            layer.mlp.up_proj.weight[[1, 5, 60]] *= 1e-6
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_statistics_equal_those_of_a_plain_run_with_hooks(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made, moved = (model(name, seed=3, dtype=dtype, vocab_size=VOCABULARY) for _ in range(2))
    moved = with_dead_neurons(drifted(moved))
    reference, target = checkpoint(tmp_path / "1", made), checkpoint(tmp_path / "2", moved)
    artifact = analysed(target, reference, submodules=True)
    assert artifact.not_computed == {}
    assert artifact.forward is not None
    assert (artifact.forward.way, artifact.forward.dtype) == ("streamed", str(dtype).removeprefix("torch."))
    mine, my_logits, is_first = hooked(moved, artifact)
    theirs, their_logits, _ = hooked(made, artifact)
    neurons = {name.replace("neurons", "model.layers"): mine.pop(name) for name in list(mine) if "neurons" in name}
    count = int((~is_first).sum())
    sample = np.linspace(0, count - 1, min(count, 512)).round().astype(int)
    for layer, values in mine.items():
        found = artifact.activation_stats[layer]
        largest = np.abs(neurons[layer]).max(axis=0)
        assert found.neurons == len(largest) == 64
        assert found.dead_neurons == np.sum(largest <= 1e-3 * np.median(largest)) == 3
        check(found.distribution, values[~is_first].ravel())
        check(found.first_token, values[is_first].ravel())
        assert (found.mean, found.percentile_99) == (found.distribution.mean, found.distribution.percentile_99)
        assert found.token_norm == pytest.approx(np.linalg.norm(values[~is_first], axis=1).mean(), rel=1e-6)
        assert set(found.submodules) == {"attn", "mlp"}
        assert artifact.functional_drift is not None
        similarity = artifact.functional_drift.similarity[layer]
        mine_there, theirs_there = values[~is_first][sample], theirs[layer][~is_first][sample]
        assert similarity.cka == pytest.approx(debiased_cka(mine_there, theirs_there), abs=1e-6)
        assert found.rankme == pytest.approx(effective_rank(mine_there), rel=1e-6)
        assert similarity.positions == found.rankme_tokens == len(sample)
    _check_predictions(artifact, my_logits, their_logits, is_first)


def _check_predictions(artifact: LayerStats, mine: Floats, theirs: Floats, is_first: npt.NDArray[np.bool_]) -> None:
    # A position has a next token where the one behind it is not a first one.
    has_next = np.append(~is_first[1:], False)
    p, q = log_softmax(mine[has_next]), log_softmax(theirs[has_next])
    mixed = np.logaddexp(p, q) - np.log(2)
    kl = (np.exp(q) * (q - p)).sum(axis=1).mean()
    js = 0.5 * ((np.exp(q) * (q - mixed)).sum(axis=1) + (np.exp(p) * (p - mixed)).sum(axis=1)).mean()
    # Without padding the head's matrix product runs on other shapes: the last bits of bfloat16 differ.
    exact = 1e-6 if artifact.forward and artifact.forward.dtype == "float32" else 5e-2
    assert artifact.functional_drift is not None
    assert artifact.functional_drift.output is not None
    assert artifact.output_stats is not None
    assert artifact.functional_drift.output.positions == has_next.sum()
    assert artifact.functional_drift.output.kl == pytest.approx(kl, rel=exact)
    assert artifact.functional_drift.output.js == pytest.approx(js, rel=exact)
    assert artifact.output_stats.entropy == pytest.approx(-(np.exp(p) * p).sum(axis=1).mean(), rel=exact)


def test_skills_have_statistics_of_their_own(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "1", model("llama", seed=3, vocab_size=VOCABULARY))
    artifact = analysed(target)
    stats = artifact.activation_stats["model.layers.1"]
    assert set(stats.by_skill) == {"BIN", "SY"}
    assert artifact.probe_info is not None
    tokens = artifact.probe_info.tokens_by_skill
    assert stats.by_skill["BIN"].count == (tokens["BIN"] - 2) * 32  # two probes' first tokens are left out
    assert set(artifact.output_stats_by_skill) == {"BIN", "SY"}
    assert artifact.functional_drift is None
    only = analysed(target, probes="SY")
    assert only.probe_info is not None
    assert only.probe_info.num_sequences == 24
    assert set(only.probe_info.tokens_by_skill) == {"SY"}


def test_an_encoder_gets_its_activations_without_the_heads_metrics(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "1", model("bert", seed=3, vocab_size=VOCABULARY))
    artifact = analysed(target)
    assert "encoder.layer.2" in artifact.activation_stats
    assert artifact.output_stats is None
    assert artifact.not_computed == {"predictions": "the model has no causal head"}


def test_a_model_that_cannot_be_streamed_is_loaded_whole_and_says_so(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "1", model("mixtral", seed=3, vocab_size=VOCABULARY))
    artifact = analysed(target)
    assert artifact.forward is not None
    assert artifact.forward.way == "whole"
    assert "no tensor is stored for" in (artifact.forward.reason or "")
    assert "model.layers.2" in artifact.activation_stats
    assert artifact.output_stats is not None


def test_a_model_that_sees_images_too_is_run_on_texts(tmp_path: Path) -> None:
    torch.manual_seed(3)
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**part, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY},
        vision_config={**part, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    artifact = analysed(checkpoint(tmp_path / "1", made))
    assert artifact.not_computed == {}
    assert artifact.activation_stats["model.language_model.layers.1"].neurons == 64


def test_nan_weights_in_the_middle_give_counts_and_a_critical_alert(tmp_path: Path) -> None:
    made = model("llama", seed=3, vocab_size=VOCABULARY)
    with torch.no_grad():
        made.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = float("nan")
    artifact = analysed(checkpoint(tmp_path / "1", made))
    before, after = (artifact.activation_stats[f"model.layers.{number}"].distribution for number in (0, 1))
    assert before.nan_count == 0
    assert after.nan_count > 0
    assert "critical" in {alert.severity for alert in artifact.alerts}
    assert artifact.weight_stats["model.layers.1"].nan_count == 1


@pytest.mark.parametrize(
    ("break_it", "probes", "reason"),
    [
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "default", "tokenizer_unfit"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "default", "tokenizer_missing"),
        (lambda _: None, "nothing", "probes_missing"),
        (lambda folder: (folder / "config.json").unlink(), "default", "model_unsupported"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "new"}'), "default", "model_unsupported"),
    ],
    ids=["tokenizer broken", "tokenizer missing", "probes missing", "no config", "unknown model"],
)
def test_without_activations_the_weights_are_still_delivered(
    break_it: Callable[[Path], object], probes: str, reason: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "1", model("llama", seed=3, vocab_size=VOCABULARY))
    break_it(folder)
    artifact = analysed(folder, probes=probes)
    assert artifact.not_computed["activations"].startswith(f"{reason}: ")
    assert len(artifact.weight_stats) == 6
    assert artifact.activation_stats == {}


def test_the_tokenizer_that_is_missing_can_be_named_as_the_reason_says(tmp_path: Path) -> None:
    made = model("llama", seed=3, vocab_size=VOCABULARY)
    folder = checkpoint(tmp_path / "1", made, has_tokenizer=False)
    assert "analyze --tokenizer" in analysed(folder).not_computed["activations"]
    named = save_tokenizer(tmp_path / "tokenizer", vocabulary=VOCABULARY)
    assert analysed(folder, tokenizer_path=str(named)).activation_stats


def test_of_a_single_file_weights_and_drift_are_read_and_the_folder_is_asked_for(tmp_path: Path) -> None:
    reference = checkpoint(tmp_path / "1", model("llama", seed=3, vocab_size=VOCABULARY))
    target = checkpoint(tmp_path / "2", model("llama", seed=4, vocab_size=VOCABULARY))
    file, theirs = target / "model.safetensors", reference / "model.safetensors"
    alone = analysed(file, theirs, tokenizer_path=str(target))
    reason = f"model_unsupported: {str(file)!r} is one file, of which only weights and drift are read; name the folder"
    assert alone.not_computed["activations"].startswith(reason)
    assert alone.drift_stats["model.layers.0"].relative_l2 is not None
    beside = analysed(target, theirs)
    assert beside.activation_stats
    assert f"{str(theirs)!r} is one file" in beside.not_computed["functional_drift"]


def test_a_vocabulary_smaller_than_the_tokenizers_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "1", model("llama", seed=3, vocab_size=50))
    artifact = analysed(folder)
    assert artifact.not_computed["activations"].startswith("tokenizer_unfit: ")


def test_a_reference_with_another_vocabulary_gives_drift_where_shapes_agree_and_no_similarity(tmp_path: Path) -> None:
    reference = checkpoint(tmp_path / "1", model("llama", seed=3, vocab_size=VOCABULARY + 8))
    target = checkpoint(tmp_path / "2", model("llama", seed=4, vocab_size=VOCABULARY))
    artifact = analysed(target, reference)
    assert artifact.drift_stats["model.layers.0"].relative_l2 is not None
    assert artifact.functional_drift is None
    assert "one tokenizer" in artifact.not_computed["functional_drift"]
    assert artifact.activation_stats


def test_a_reference_with_another_tokenizer_is_not_compared_by_what_it_says(tmp_path: Path) -> None:
    made = model("llama", seed=3, vocab_size=VOCABULARY)
    target, reference = checkpoint(tmp_path / "2", made), saved(made, tmp_path / "1")
    save_tokenizer(reference, vocabulary=VOCABULARY // 2)
    artifact = analysed(target, reference)
    assert artifact.functional_drift is None
    assert "gives other tokens" in artifact.not_computed["functional_drift"]
    config = reference / "tokenizer_config.json"
    save_tokenizer(reference, vocabulary=VOCABULARY, has_start=True)
    config.write_text(f"{config.read_text()} ")  # other bytes, the same tokens
    assert analysed(target, reference).functional_drift is not None


def test_tokens_are_cut_at_the_limit(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "1", model("llama", seed=3, vocab_size=VOCABULARY))
    artifact = analysed(folder, max_probe_tokens=17)
    assert artifact.probe_info is not None
    assert (artifact.probe_info.total_tokens, artifact.probe_info.truncated) == (17, True)
