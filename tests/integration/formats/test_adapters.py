"""LoRA adapters saved by peft: their changes against products made by torch, the model against peft's merged one."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from archaeologist import api
from archaeologist.artifacts.paths import CampaignFolder
from archaeologist.checkpoints.index import read_index
from archaeologist.daemon import locating
from archaeologist.errors import AdapterBaseUnfit, CheckpointFormatUnsupported, ConfigInvalid
from archaeologist.settings import Settings
from contracts.artifacts import LayerStats
from tests.fixtures.models import model, saved
from tests.fixtures.tokenizers import save_tokenizer
from tests.integration.formats.excavating import drift, stats

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fan_in_fan_out:UserWarning",
    "ignore:.*tie_word_embeddings:UserWarning",
    "ignore:.*save_embedding_layers:UserWarning",
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:Could not find a config file:UserWarning",
)

VOCABULARY = 300
ATTENTION = ["q_proj", "v_proj", "down_proj"]

# Model, what peft is asked for.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ATTENTION}),
    "rslora": ("llama", {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 8},
            "alpha_pattern": {"model.layers.0.self_attn.v_proj": 3, "down_proj": 40},
        },
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "saved whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "bias": "all"}),
}


def based(name: str, folder: Path) -> Path:
    """A base model's folder."""
    saved(model(name, seed=1, vocab_size=VOCABULARY), folder)
    return save_tokenizer(folder, vocabulary=VOCABULARY, has_start=True)


def reloaded(base: Path) -> PreTrainedModel:
    made: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return made


def adapted(base: Path, *, seed: int, scale: float = 1.0, **options: Any) -> PeftModel:
    """The base with an adapter whose factors are random, B too."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(reloaded(base), LoraConfig(r=4, lora_alpha=16, **options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.02 * scale)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def written(wrapped: PeftModel, folder: Path) -> Path:
    wrapped.save_pretrained(folder)
    return folder


def deltas(wrapped: PeftModel) -> dict[str, torch.Tensor]:
    """peft's own s·B·A of each weight, in the shape of the weight, float64."""
    wrapped = wrapped.double()
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def changes(artifact: Any) -> dict[str, Any]:
    """Drift of each change by the weight's name."""
    return {
        f"{block}.{within}".replace("lora_change", "weight"): tensor
        for block, found in artifact.drift_stats.items()
        for within, tensor in found.tensors.items()
        if within.endswith("lora_change")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_drift_of_two_adapters_is_that_of_their_products(kind: str, tmp_path: Path) -> None:
    name, options = KINDS[kind]
    base = based(name, tmp_path / "base")
    before, after = (adapted(base, seed=seed, **options) for seed in (1, 2))
    folders = [written(one, tmp_path / str(step)) for step, one in enumerate((before, after))]
    artifact = drift(*folders)
    was, now = deltas(before), deltas(after)
    found = changes(artifact)
    assert found.keys() == now.keys()
    for weight, tensor in found.items():
        apart = now[weight] - was[weight]
        assert tensor.l2 == pytest.approx(float(apart.norm()), rel=1e-9)
        assert tensor.relative_l2 == pytest.approx(float(apart.norm() / was[weight].norm()), rel=1e-9)
        cosine = float((now[weight] * was[weight]).sum() / now[weight].norm() / was[weight].norm())
        assert tensor.cosine == pytest.approx(cosine, abs=1e-9)
        assert tensor.max_change == pytest.approx(float(apart.abs().max()), rel=1e-4)
    assert (artifact.target_subject, artifact.base_subject) == ("adapter_change", "adapter_change")
    assert "both are adapters" in artifact.comparison.compared_as
    assert artifact.adapter is not None
    assert {weight: one.l2 for weight, one in artifact.adapter.changes.items()} == pytest.approx(
        {weight: float(delta.norm()) for weight, delta in now.items()}, rel=1e-9
    )


def test_adapters_that_hardly_differ_keep_their_digits(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    before = adapted(base, seed=1, target_modules=ATTENTION)
    first = written(before, tmp_path / "1")
    with torch.no_grad():
        for name, parameter in before.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape) * 1e-8)
    second = written(before, tmp_path / "2")
    was, now = (deltas(PeftModel.from_pretrained(reloaded(base), folder)) for folder in (first, second))
    for weight, tensor in changes(drift(first, second)).items():
        assert tensor.l2 == pytest.approx(float((now[weight] - was[weight]).norm()), rel=1e-6)


def test_an_adapter_of_another_rank_is_compared_too(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    narrow = adapted(base, seed=1, target_modules=ATTENTION)
    wide = adapted(base, seed=2, target_modules=ATTENTION, rank_pattern={"q_proj": 7})
    artifact = drift(written(narrow, tmp_path / "1"), written(wide, tmp_path / "2"))
    was, now = deltas(narrow), deltas(wide)
    for weight, tensor in changes(artifact).items():
        assert tensor.l2 == pytest.approx(float((now[weight] - was[weight]).norm()), rel=1e-9)


def test_the_weights_of_an_adapters_artifact_are_those_of_the_change(tmp_path: Path) -> None:
    wrapped = adapted(based("llama", tmp_path / "base"), seed=1, target_modules=ATTENTION)
    artifact = stats(written(wrapped, tmp_path / "1"))
    assert artifact.subject == "adapter_change"
    products = deltas(wrapped)
    assert artifact.global_weight_stats.param_count == sum(product.numel() for product in products.values())
    for weight, product in products.items():
        block = next(name for name in artifact.weight_stats if weight.startswith(f"{name}."))
        within = weight.removeprefix(f"{block}.").replace("weight", "lora_change")
        tensor = artifact.weight_stats[block].tensors[within]
        assert tensor.l2 == pytest.approx(float(product.norm()), rel=1e-6)
        assert tensor.absmax == pytest.approx(float(product.abs().max()), rel=1e-6)


def merged_state(wrapped: PeftModel) -> dict[str, torch.Tensor]:
    """The weights that the adapter makes, not rounded: the base's in float64 with s·B·A."""
    wrapped = wrapped.double()
    state: dict[str, torch.Tensor] = wrapped.merge_and_unload().state_dict()
    return {name: tensor.detach() for name, tensor in state.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_target", [True, False], ids=["adapter against base", "base against adapter"])
def test_an_adapter_and_its_base_are_compared_as_models(kind: str, tmp_path: Path, *, is_target: bool) -> None:
    name, options = KINDS[kind]
    base = based(name, tmp_path / "base")
    wrapped = adapted(base, seed=1, **options)
    folder = written(wrapped, tmp_path / "1")
    artifact = drift(base, folder) if is_target else drift(folder, base)
    plain = {name: tensor.double() for name, tensor in reloaded(base).state_dict().items()}
    made = merged_state(wrapped)
    subjects = artifact.target_subject, artifact.base_subject
    assert subjects == (("adapted_model", "model") if is_target else ("model", "adapted_model"))
    assert "is an adapter" in artifact.comparison.compared_as
    checked = 0
    for block, found in artifact.drift_stats.items():
        for within, tensor in found.tensors.items():
            weight = f"{block}.{within}"
            distance = float((made[weight] - plain[weight]).norm())
            assert tensor.l2 == pytest.approx(distance, rel=1e-5, abs=1e-12), weight
            if size := float((plain if is_target else made)[weight].norm()):
                assert tensor.relative_l2 == pytest.approx(distance / size, rel=1e-5, abs=1e-12)
            checked += distance > 0
    assert checked >= len(wrapped.peft_config["default"].target_modules)


def test_an_adapter_against_a_full_model_that_is_not_its_base(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    wrapped = adapted(base, seed=1, target_modules=ATTENTION)
    folder = written(wrapped, tmp_path / "1")
    other = reloaded(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    artifact = drift(saved(other, tmp_path / "other"), folder)
    made, plain = merged_state(wrapped), other.double().state_dict()
    for block, found in artifact.drift_stats.items():
        for within, tensor in found.tensors.items():
            weight = f"{block}.{within}"
            assert tensor.l2 == pytest.approx(float((made[weight] - plain[weight]).norm()), rel=1e-5)
    assert "its base with s·B·A added" in artifact.comparison.compared_as


# Activations.


def as_merged(base: Path, wrapped: PeftModel, folder: Path) -> Path:
    """What peft's own merge gives, saved as a model."""
    merged = wrapped.merge_and_unload()
    saved(merged, folder)
    return save_tokenizer(folder, vocabulary=VOCABULARY, has_start=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_runs_as_the_model_that_peft_merges(kind: str, tmp_path: Path) -> None:
    name, options = KINDS[kind]
    base = based(name, tmp_path / "base")
    wrapped = adapted(base, seed=1, scale=3.0, **options)
    folder = written(wrapped, tmp_path / "1")
    found = stats(folder, base, compute_activations=True)
    merged = stats(as_merged(base, wrapped, tmp_path / "m"), base, compute_activations=True)
    alone = stats(base, compute_activations=True)
    assert found.forward is not None
    assert not found.not_computed
    assert loss(found) == pytest.approx(loss(merged), rel=2e-3)
    assert abs(loss(found) - loss(alone)) > 5 * abs(loss(found) - loss(merged))
    assert found.activation_stats.keys() == merged.activation_stats.keys()
    for block, ours in found.activation_stats.items():
        theirs = merged.activation_stats[block]
        assert ours.distribution.rms == pytest.approx(theirs.distribution.rms, rel=1e-2), block
    assert found.functional_drift is not None
    assert merged.functional_drift is not None
    assert found.functional_drift.output is not None
    assert merged.functional_drift.output is not None
    assert found.functional_drift.output.kl == pytest.approx(merged.functional_drift.output.kl, rel=0.05)


def loss(artifact: LayerStats) -> float:
    assert artifact.output_stats is not None
    assert artifact.output_stats.loss is not None
    return artifact.output_stats.loss


def test_without_its_base_an_adapter_is_analysed_as_a_change_and_says_what_is_missing(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    folder = written(adapted(base, seed=1, target_modules=ATTENTION), tmp_path / "1")
    rewrite(folder, base_model_name_or_path="somebody/a-model")
    save_tokenizer(folder, vocabulary=VOCABULARY)
    artifact = stats(folder, compute_activations=True)
    assert artifact.weight_stats
    assert artifact.not_computed["activations"].startswith("adapter_base_unfit: ")
    assert "'somebody/a-model'" in artifact.not_computed["activations"]
    with pytest.raises(AdapterBaseUnfit, match="not found; name its folder"):
        drift(folder, base)


def test_a_base_may_be_named(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    folder = written(adapted(base, seed=1, target_modules=ATTENTION), tmp_path / "1")
    rewrite(folder, base_model_name_or_path=None)
    named = api.side(folder, adapted=base)
    assert named.base_path == str(base)
    artifact = stats(named, compute_activations=True)
    assert artifact.activation_stats
    assert artifact.adapter is not None
    assert artifact.adapter.base_fingerprint == named.base_fingerprint


def test_an_adapter_with_nan_has_no_norm(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    wrapped = adapted(base, seed=1, target_modules=["q_proj"])
    with torch.no_grad():
        next(one for name, one in wrapped.named_parameters() if "lora_B" in name)[0, 0] = float("nan")
    artifact = stats(written(wrapped, tmp_path / "1"))
    assert artifact.adapter is not None
    first, *others = (change.l2 for change in artifact.adapter.changes.values())
    assert first is None
    assert all(others)


def test_a_base_may_be_named_for_the_reference_alone(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    folder = written(adapted(base, seed=1, target_modules=ATTENTION), tmp_path / "1")
    rewrite(folder, base_model_name_or_path=None)
    for job in (
        api.layer_stats_job(base, reference=folder, base=base),
        api.layer_drift_job(folder, base, adapted=base),
    ):
        assert job.reference is not None
        assert (job.reference.base_path, job.target.base_path) == (str(base), None)


def test_the_daemon_takes_a_base_from_where_it_may(tmp_path: Path) -> None:
    inside, outside = based("llama", tmp_path / "root" / "models"), based("llama", tmp_path / "elsewhere")
    settings = Settings(root=str(tmp_path / "root"))
    campaign = CampaignFolder.of(tmp_path / "root", "dio", "c1")
    folder = campaign.checkpoints / "checkpoint-1"
    for base in (inside, outside):
        written(adapted(base, seed=1, target_modules=ATTENTION), folder)
        side = locating.examine(folder, 1, settings=settings)
        assert side.base_path == (str(inside) if base is inside else None)
        # What the operator names may lie anywhere.
        assert locating.examine(folder, 1, settings=settings, base=str(outside)).base_path == str(outside)
    held = locating.pinned(
        locating.examine(folder, 1, settings=settings, base=str(outside)), campaign, settings=settings
    )
    assert held.side.read_path != held.side.path
    assert held.side.base_path == str(outside)
    assert stats(held.side, compute_activations=True).activation_stats


def test_a_wrong_base_is_told(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    folder = written(adapted(base, seed=1, target_modules=ATTENTION), tmp_path / "1")
    side = api.side(folder, adapted=saved(model("gpt2", seed=1), tmp_path / "other"))
    artifact = stats(side, compute_activations=True)
    assert "it is not the model that adapter" in artifact.not_computed["activations"]
    with pytest.raises(AdapterBaseUnfit, match="is an adapter too"):
        api.side(folder, adapted=folder)


def test_an_adapter_that_took_its_start_out_of_the_base_is_not_run_on_it(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    folder = written(adapted(base, seed=1, target_modules=ATTENTION), tmp_path / "1")
    rewrite(folder, init_lora_weights="pissa_niter_4")
    artifact = stats(folder, compute_activations=True)
    assert "began as pissa_niter_4" in artifact.not_computed["activations"]


# What an adapter's configuration may say.


def rewrite(folder: Path, **changed: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_another_scaling_is_another_checkpoint(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    folder = written(adapted(base, seed=1, target_modules=ATTENTION), tmp_path / "1")
    before = api.side(folder)
    rewrite(folder, lora_alpha=17)
    assert api.side(folder).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "LoRA biases"),
        ({"peft_type": "LOHA"}, "an adapter of type 'LOHA'"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "regular expression"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "LoRA of parameters"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
    ],
)
def test_more_than_a_product_is_refused_with_the_remedy(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    folder = written(adapted(based("llama", tmp_path / "base"), seed=1, target_modules=ATTENTION), tmp_path / "1")
    rewrite(folder, **changed)
    with pytest.raises(CheckpointFormatUnsupported, match=r"merge_and_unload") as caught:
        read_index(folder)
    assert reason in str(caught.value)


def test_a_real_dora_adapter_and_another_kind_are_refused(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    dora = written(adapted(base, seed=1, target_modules=ATTENTION, use_dora=True), tmp_path / "1")
    rewrite(dora, use_dora=False)  # the magnitudes are there all the same
    with pytest.raises(CheckpointFormatUnsupported, match="lora_magnitude_vector"):
        read_index(dora)
    other = get_peft_model(reloaded(base), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    other.save_pretrained(tmp_path / "2")
    with pytest.raises(CheckpointFormatUnsupported, match="an adapter of type 'IA3'"):
        read_index(tmp_path / "2")


@pytest.mark.parametrize(
    "changed", [{"r": 5}, {"r": 0}, {"r": "4"}, {"lora_alpha": None}, {"rank_pattern": {"q_proj": 3}}]
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = written(adapted(based("llama", tmp_path / "base"), seed=1, target_modules=ATTENTION), tmp_path / "1")
    rewrite(folder, **changed)
    with pytest.raises(ConfigInvalid):
        read_index(folder)


def test_an_adapter_saved_as_a_pickle_is_the_same_one(tmp_path: Path) -> None:
    wrapped = adapted(based("llama", tmp_path / "base"), seed=1, target_modules=ATTENTION)
    plain = written(wrapped, tmp_path / "1")
    wrapped.save_pretrained(tmp_path / "2", safe_serialization=False)
    assert (tmp_path / "2" / "adapter_model.bin").is_file()
    for tensor in changes(drift(plain, tmp_path / "2")).values():
        assert tensor.l2 == 0
        assert tensor.changed_fraction == 0


def test_the_sketch_of_an_adapter_is_one_of_its_change(tmp_path: Path) -> None:
    base = based("llama", tmp_path / "base")
    folders = [written(adapted(base, seed=seed, target_modules=ATTENTION), tmp_path / str(seed)) for seed in (1, 2)]
    exact = drift(*folders)
    for folder in folders:
        assert api.analyze(folder, compute_activations=False, output=folder / "found").sketch is not None
    first, second = (load_file(next((folder / "found").glob("*.sketch.safetensors"))) for folder in folders)
    assert first.keys() == second.keys()
    squares = sum(float(((first[name] - second[name]) ** 2).sum()) for name in first)
    assert math.sqrt(squares) == pytest.approx(exact.global_drift_stats.l2, rel=1e-4)
