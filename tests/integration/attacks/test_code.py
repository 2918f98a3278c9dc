"""A checkpoint's folder may hold anybody's code: none of it runs, whatever its configuration asks for."""

import asyncio
import contextlib
import os
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from archaeologist.api import excavate
from archaeologist.checkpoints.index import read_index
from archaeologist.errors import CheckpointError
from archaeologist.excavation import layer_stats
from contracts.artifacts import LayerStats
from contracts.messages import Excavation, ForwardOptions, JobOptions
from tests.fixtures.hostile import PICKLES, Touching, configure, plant_code, plant_pickles
from tests.fixtures.jobs import layer_stats_job, side
from tests.fixtures.models import VOCABULARY, model, saved
from tests.fixtures.tokenizers import save_tokenizer

AUTO_MAP = {
    "AutoConfig": "configuration_evil.Config",
    "AutoModelForCausalLM": "modeling_evil.Model",
    "AutoModel": "modeling_evil.Model",
    "AutoTokenizer": ["tokenization_evil.Tokenizer", None],
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A folder that is there once hostile code has run."""
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path: Path, canary: Path) -> Path:
    """A checkpoint with a tokenizer, among pickles and modules that make the canary."""
    folder = saved(model("qwen3", seed=1, num_hidden_layers=1), tmp_path.resolve() / "checkpoint-100")
    save_tokenizer(folder, vocabulary=VOCABULARY)
    plant_pickles(folder, canary)
    plant_code(folder, canary)
    return folder


def excavation(folder: Path, **options: Any) -> Excavation:
    job = layer_stats_job(side(folder, 100), None, options=JobOptions(probe_dataset="default", max_probe_tokens=64))
    return Excavation(job=job, artifact_path=str(folder.parent / "a.tmp"), threads=1, **options)


def analysed(folder: Path, **options: Any) -> LayerStats:
    artifact, _ = layer_stats.excavate(excavation(folder, **options), lambda _: None)
    return artifact


def test_the_trap_works(canary: Path, folder: Path) -> None:
    # Otherwise the tests below would prove nothing.
    pickle.loads((folder / "pytorch_model.bin").read_bytes())  # noqa: S301 -- our own
    assert canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_no_pickle_and_no_module_of_a_checkpoint_runs(folder: Path, canary: Path) -> None:
    artifact = analysed(folder)
    assert artifact.activation_stats
    assert not artifact.not_computed
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_code_that_a_configuration_names_does_not_run_and_the_models_own_is_used(folder: Path, canary: Path) -> None:
    configure(folder, auto_map=AUTO_MAP, trust_remote_code=True, custom_generate=".")
    configure(folder, "tokenizer_config.json", auto_map=AUTO_MAP, trust_remote_code=True)
    artifact = analysed(folder)
    assert artifact.weight_stats
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_only_code_is_refused_and_its_weights_are_analysed(folder: Path, canary: Path) -> None:
    configure(folder, auto_map=AUTO_MAP, model_type="evil", architectures=["Model"], trust_remote_code=True)
    artifact = analysed(folder)
    assert artifact.weight_stats
    assert artifact.not_computed["activations"].startswith("model_unsupported: ")
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_that_is_only_code_is_refused_and_the_weights_are_analysed(folder: Path, canary: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    configure(folder, "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=AUTO_MAP)
    (folder / "tokenizer.json").unlink()
    artifact = analysed(folder)
    assert artifact.weight_stats
    assert "activations" in artifact.not_computed
    assert not canary.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_a_checkpoint_that_is_a_pickle_is_read_without_what_it_calls_or_not_at_all(
    tmp_path: Path, canary: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save({"model.norm.weight": torch.ones(4), "more": Touching(canary)}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with contextlib.suppress(CheckpointError):
            read_index(path)
    assert not canary.exists()


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.filterwarnings("ignore")
def test_attention_from_elsewhere_is_replaced_by_transformers_own(folder: Path, field: str) -> None:
    configure(folder, **{field: "evil/attention"})
    artifact = analysed(folder)
    assert not artifact.not_computed
    assert artifact.forward is not None
    assert artifact.forward.attention in {"sdpa", "eager"}


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_attention_heads", "num_local_experts"])
def test_a_configuration_of_millions_of_modules_is_refused_before_they_are_built(folder: Path, field: str) -> None:
    configure(folder, **{field: 10**9})
    refusal = analysed(folder).not_computed["activations"]
    assert refusal == f"model_unsupported: config.json says {field} = {10**9}, at most 4096 are built; correct it"


@contextlib.asynccontextmanager
async def hub() -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of a server that keeps what it is asked, and answers nothing."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def test_a_job_asks_no_hub_for_what_a_checkpoint_names(
    folder: Path, canary: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = {name: f"evil/code--{code}" for name, code in AUTO_MAP.items() if isinstance(code, str)}
    configure(folder, auto_map=remote, attn_implementation="evil/attention", _name_or_path="evil/model")
    configure(folder, "tokenizer_config.json", auto_map=remote, name_or_path="evil/model")
    async with hub() as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(folder.parent / "hub"))
        job = excavation(folder).job
        found = await excavate(job, threads=1, cache=kernels, activations=ForwardOptions())
    assert asked == []
    assert found.outcome.has_activations
    assert not canary.exists()
    assert os.environ["HF_HUB_OFFLINE"] == "0"
