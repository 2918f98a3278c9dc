"""Optional analyses in a job's artifact: there when asked for, with a reason when they cannot be."""

from pathlib import Path

import pytest

from archaeologist.checkpoints.index import read_index
from archaeologist.excavation import layer_stats
from archaeologist.excavation.forward import probing
from contracts.artifacts import LayerStats
from contracts.messages import Analysis, Excavation, JobOptions
from tests.fixtures.jobs import layer_stats_job, side
from tests.fixtures.models import model, saved
from tests.fixtures.tokenizers import save_tokenizer

VOCABULARY = 300


def checkpoint(folder: Path, *, seed: int, name: str = "qwen3") -> Path:
    return save_tokenizer(saved(model(name, seed=seed, vocab_size=VOCABULARY), folder), vocabulary=VOCABULARY)


def analysed(
    target: Path, reference: Path | None = None, *, analyses: tuple[Analysis, ...], compute_activations: bool = True
) -> LayerStats:
    sides = [side(path, step) for step, path in enumerate((reference, target), start=1) if path is not None]
    options = JobOptions(
        compute_activations=compute_activations, probe_dataset="default", max_probe_tokens=256, analyses=analyses
    )
    job = layer_stats_job(sides[-1], sides[0] if reference else None, options=options)
    excavation = Excavation(job=job, artifact_path=str(target / "a.tmp"), threads=1)
    artifact, _ = layer_stats.excavate(excavation, lambda _: None)
    return artifact


ALL: tuple[Analysis, ...] = ("attention", "generations", "htsr", "spectra")


def test_all_of_them_beside_the_walk(tmp_path: Path) -> None:
    artifact = analysed(checkpoint(tmp_path / "b", seed=1), checkpoint(tmp_path / "a", seed=2), analyses=ALL)
    layers = [f"model.layers.{number}" for number in range(3)]
    for layer in layers:
        looks = artifact.activation_stats[layer].attention
        assert looks is not None
        assert 0 < (looks.normalized_entropy or 0) <= 1
        drift = artifact.drift_stats[layer].tensors
        assert {name for name, tensor in drift.items() if tensor.spectrum is None} == {
            name for name in drift if name.endswith("norm.weight")
        }
    assert artifact.not_computed.pop("htsr").startswith(
        "fewer than 50 eigenvalues above 0"
    )  # all matrices are that small
    assert artifact.not_computed == {}
    assert artifact.generations is not None
    assert len(artifact.generations.texts) == artifact.generations.sampled.texts == 8
    assert artifact.activation_stats["model.embed_tokens"].attention is None


def test_what_was_not_asked_for_is_not_there(tmp_path: Path) -> None:
    artifact = analysed(checkpoint(tmp_path / "b", seed=1), analyses=())
    assert artifact.not_computed == {}
    assert artifact.generations is None
    assert artifact.activation_stats["model.layers.0"].attention is None


def test_without_the_forward_pass_those_that_need_it_say_so(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "b", seed=1)
    reasons = analysed(folder, analyses=("attention", "generations"), compute_activations=False).not_computed
    assert reasons == dict.fromkeys(
        ("attention", "generations"), "it runs the model on the probes, and compute_activations is false"
    )
    (folder / "tokenizer.json").unlink()
    reasons = analysed(folder, analyses=("attention",)).not_computed
    assert reasons["attention"] == "it runs the model on the probes, and the model could not be run, see activations"


def test_too_little_memory_for_generations_says_how_much_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "b", seed=1)
    monkeypatch.setattr(probing, "_free_memory", lambda: 1000)
    artifact = analysed(folder, analyses=("generations",))
    size = sum(entry.size for entry in read_index(folder).tensors.values())
    assert artifact.not_computed == {
        "generations": f"the model whole needs {size * 1.5:.0f} bytes of memory and 1000 are free"
    }
    assert artifact.activation_stats


def test_a_model_that_is_loaded_whole_has_them_too(tmp_path: Path) -> None:
    artifact = analysed(checkpoint(tmp_path / "b", seed=1, name="mixtral"), analyses=("attention", "generations"))
    assert artifact.forward is not None
    assert artifact.forward.way == "whole"
    assert artifact.not_computed == {}
    assert artifact.generations is not None
    assert artifact.activation_stats["model.layers.2"].attention is not None


def test_an_encoder_writes_nothing_and_says_so(tmp_path: Path) -> None:
    artifact = analysed(checkpoint(tmp_path / "b", seed=1, name="bert"), analyses=("generations", "attention"))
    assert artifact.not_computed["generations"] == "the model has no causal head"
    assert artifact.activation_stats["encoder.layer.0"].attention is not None
