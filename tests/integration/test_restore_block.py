"""``restore-block``, its result loaded by transformers and compared tensor by tensor."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from archaeologist.checkpoints.index import read_index
from archaeologist.cli import app
from tests.fixtures.models import model, saved
from tests.fixtures.tokenizers import save_tokenizer

BLOCK = "model.layers.1"


def pair(tmp_path: Path, name: str = "qwen3", *, shard: str | None = None, **changes: Any) -> tuple[Path, Path]:
    """A trainer's checkpoint and its reference."""
    folders = []
    options: dict[str, Any] = {"max_shard_size": shard} if shard else {}
    for seed in (1, 2):
        folder = tmp_path / f"checkpoint-{seed}"
        made = model(name, seed=seed, **changes)
        made.save_pretrained(folder, **options)
        save_tokenizer(folder)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": seed}))
        (folder / "optimizer.pt").write_bytes(b"not to be copied")
        folders.append(folder)
    return folders[0], folders[1]


def restore(checkpoint: Path, reference: Path, output: Path, *blocks: str) -> int:
    options = [option for block in blocks or (BLOCK,) for option in ("--block", block)]
    return app.run(["restore-block", str(checkpoint), *options, "--reference", str(reference), "--output", str(output)])


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """As transformers reads it, tied weights included."""
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    return found


def check(checkpoint: Path, reference: Path, output: Path, *prefixes: str) -> None:
    """Each tensor is the reference's where its name begins so, and the checkpoint's elsewhere."""
    ours, theirs, found = loaded(checkpoint), loaded(reference), loaded(output)
    assert found.keys() == ours.keys()
    of_reference = {name for name in found if name.startswith(prefixes)}
    assert of_reference
    for name, tensor in found.items():
        expected = theirs[name] if name in of_reference else ours[name]
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected), name
        if name in of_reference and "norm" not in name:
            assert not torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_one_block_is_the_references_and_the_rest_the_checkpoints(tmp_path: Path, shard: str | None) -> None:
    checkpoint, reference = pair(tmp_path, shard=shard)
    output = tmp_path / "sub" / "restored"
    assert restore(checkpoint, reference, output) == 0
    check(checkpoint, reference, output, f"{BLOCK}.")
    assert (len(read_index(output).files) > 1) == (shard is not None)
    # Headers and everything else to the byte.
    for file in read_index(checkpoint).files:
        copy = output / Path(file).name
        assert copy.stat().st_size == Path(file).stat().st_size
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not {"trainer_state.json", "optimizer.pt"} & names
    told = json.loads((output / "restored_blocks.json").read_text())
    assert (told["blocks"], told["reference"]) == ([BLOCK], str(reference))
    assert len(told["tensors"]) == 11
    assert [path.name for path in output.parent.iterdir()] == ["restored"]


def test_several_blocks_from_a_reference_in_other_shards(tmp_path: Path) -> None:
    checkpoint, reference = pair(tmp_path, "llama", tie_word_embeddings=False)
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(reference, dtype="auto").save_pretrained(sharded, max_shard_size="20KB")
    output = tmp_path / "restored"
    assert restore(checkpoint, sharded, output, "model.layers.0", "lm_head") == 0
    check(checkpoint, reference, output, "model.layers.0.", "lm_head.")


def test_a_tied_head_follows_its_embedding(tmp_path: Path) -> None:
    checkpoint, reference = pair(tmp_path)
    assert restore(checkpoint, reference, tmp_path / "restored", "model.embed_tokens") == 0
    check(checkpoint, reference, tmp_path / "restored", "model.embed_tokens.", "lm_head.")


def test_a_tied_head_that_is_stored_twice_follows_too(tmp_path: Path) -> None:
    checkpoint, reference = pair(tmp_path)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    output = tmp_path / "restored"
    assert restore(checkpoint, reference, output, "model.embed_tokens") == 0
    written, theirs = load_file(output / "model.safetensors"), load_file(reference / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(written[name], theirs["model.embed_tokens.weight"])


def test_a_tied_head_is_refused_with_the_block_that_it_is_tied_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, reference = pair(tmp_path)
    assert restore(checkpoint, reference, tmp_path / "restored", "lm_head") == app.FAILED
    said = capsys.readouterr().err
    assert "block_unknown" in said
    assert "its head is tied to model.embed_tokens" in said


def test_an_unknown_block_is_refused_with_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, reference = pair(tmp_path)
    assert restore(checkpoint, reference, tmp_path / "restored", "model.layers.9") == app.FAILED
    assert "there are model.embed_tokens, model.layers.0, model.layers.1, model.layers.2" in capsys.readouterr().err
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": torch.float32}, "is BF16 [32] in the checkpoint and F32 [32] in the reference"),
        ({"intermediate_size": 48}, "is BF16 [32, 64] in the checkpoint and BF16 [32, 48] in the reference"),
        ({"num_hidden_layers": 1}, "has no tensor 'input_layernorm.weight' in a block 'model.layers.1'"),
    ],
)
def test_a_reference_of_another_make_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = pair(tmp_path)
    other = saved(model("qwen3", seed=3, **changes), tmp_path / "other")
    assert restore(checkpoint, other, tmp_path / "restored") == app.FAILED
    error = capsys.readouterr().err
    assert "error: block_mismatch" in error
    assert said in error
    assert not (tmp_path / "restored").exists()


def test_nothing_is_written_where_something_lies_or_into_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, reference = pair(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    before = os.stat(checkpoint).st_mtime_ns  # noqa: PTH116 -- the same
    for output in (mine, checkpoint, checkpoint / "restored", reference / "a" / "b", tmp_path / "checkpoint-9" / "x"):
        assert restore(checkpoint, reference, output) == app.USAGE, output
    said = capsys.readouterr().err
    assert said.count("lies in a checkpoint's folder") == 3
    assert [path.name for path in mine.iterdir()] == ["file"]
    assert checkpoint.stat().st_mtime_ns == before


def test_a_write_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, reference = pair(tmp_path, shard="20KB")
    real, calls = os.fsync, iter([False, True])

    def failing(descriptor: int) -> None:
        if next(calls, True):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    assert restore(checkpoint, reference, tmp_path / "out" / "restored") == app.FAILED
    assert "artifact_unwritable" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_safetensors_is_refused_with_the_way_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, reference = pair(tmp_path)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(load_file(checkpoint / "model.safetensors"), pickled / "pytorch_model.bin")
    assert restore(pickled, reference, tmp_path / "restored") == app.FAILED
    assert "is read as pytorch, only safetensors are rewritten; save it as safetensors first" in capsys.readouterr().err
    # As a reference it is as good as any.
    assert restore(reference, pickled, tmp_path / "restored") == 0
    check(reference, checkpoint, tmp_path / "restored", f"{BLOCK}.")
