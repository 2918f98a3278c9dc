"""The streamed forward pass gives, bit for bit, what the loaded model gives."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from archaeologist.checkpoints.index import read_index
from archaeologist.checkpoints.reader import Reader
from archaeologist.errors import ModelUnsupported
from archaeologist.excavation.forward import head
from archaeologist.excavation.forward.head import Head
from archaeologist.excavation.forward.lanes import Lanes
from archaeologist.excavation.forward.model import TensorsStoredOtherwise, skeleton
from archaeologist.excavation.forward.stepper import Stepper
from archaeologist.excavation.forward.streaming import Batch, Bytes, Hidden, Lockstep, Outputs, Side
from archaeologist.excavation.walk import Walk
from tests.fixtures.models import CONFIGS, ENCODERS, VOCABULARY, loaded_whole, model, saved
from tests.unit.excavation.walking import planned

STREAMED = sorted(set(CONFIGS) - {"mixtral"})


def batches() -> list[Batch]:
    """One with padding, one without."""
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 7:] = 0
    return [Batch(input_ids=ids, attention_mask=mask), Batch(input_ids=ids[:, :4], attention_mask=None)]


@contextmanager
def ran(
    folders: Sequence[Path],
    *,
    is_whole: bool = False,
    is_guest: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - never changes
) -> Iterator[tuple[list[Side], list[Outputs], Lockstep]]:
    """The passes of a target, and of a reference, done."""
    with ExitStack() as files:
        indexes = [read_index(folder) for folder in folders]
        readers = [files.enter_context(Reader(index)) for index in indexes]
        sides = [
            Side(
                loaded_whole(folder) if is_whole else skeleton(folder, index),
                reader,
                batches(),
                device=device,
                has_submodules=True,
            )
            for folder, index, reader in zip(folders, indexes, readers, strict=True)
        ]
        outputs: list[Outputs] = []
        lanes = files.enter_context(Lanes(3))
        lockstep = Lockstep(
            sides[0], sides[1] if len(sides) > 1 else None, outputs.append, lanes=lanes, is_guest=is_guest
        )
        files.callback(lockstep.close)
        plan = planned(folders[0], folders[1] if len(folders) > 1 else None)
        walk = Walk(
            plan,
            target=readers[0],
            reference=readers[1] if len(readers) > 1 else None,
            kept_blocks=plan.run_blocks(),
        )
        for _ in lockstep.through(walk.blocks()):
            pass
        yield sides, outputs, lockstep


@contextmanager
def one_thread() -> Iterator[None]:
    """As many as a pass has: in float32 the last bits of a product depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def loaded(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The last hidden states of the model as it is."""
    base = getattr(model, model.base_model_prefix, model)
    with one_thread():
        found: torch.Tensor = base(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("name", STREAMED)
def test_hidden_states_and_logits_are_those_of_the_loaded_model(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [model(name, seed=seed, dtype=dtype) for seed in (1, 2)]
    folders = [saved(made, tmp_path / str(number)) for number, made in enumerate(models)]
    with ran(folders) as (sides, outputs, lockstep):
        assert lockstep.failure is None
        for made, side in zip(models, sides, strict=True):
            for batch, hidden in zip(batches(), side.last_hidden(), strict=True):
                assert torch.equal(hidden, loaded(made, batch))
            assert (side.model.head is None) == (name in ENCODERS)
            if side.model.head is not None:
                monkeypatch.setattr(head, "SLICE_BYTES", 32 * 7 * torch.finfo(dtype).bits // 8)
                with Lanes(3) as lanes, Head(side, lanes=lanes) as sliced:
                    logits = sliced.logits(side.last_hidden()[1][0])
                with torch.inference_mode():
                    expected = made(input_ids=batches()[1].input_ids[:1]).logits[0]
                assert torch.allclose(logits, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
            assert all(parameter.is_meta for parameter in side.model.model.parameters())
    layers = [found.name for found in outputs if any(part in found.name for part in ("layer.", "layers.", ".h."))]
    assert len(layers) == 3
    assert all(found.reference is not None for found in outputs)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "bert"])
def test_each_blocks_output_is_that_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    made = model(name, seed=1)
    with ran([saved(made, tmp_path / "a")]) as (_, outputs, _):
        base = getattr(made, made.base_model_prefix, made)
        batch = batches()[0]
        with torch.inference_mode():
            expected = base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
    blocks = [found for found in outputs if ".0" in found.name or ".1" in found.name]
    for found, hidden in zip(blocks, expected[1:3], strict=True):
        assert torch.equal(found.target[0], hidden)
    assert set(blocks[0].submodules) == ({"attn", "mlp"} if name != "bert" else {"attn"})


def test_a_head_tied_to_the_embedding_is_read_again(tmp_path: Path) -> None:
    made = model("qwen3", seed=1)
    with ran([saved(made, tmp_path / "a")]) as (sides, _, _):
        assert sides[0].model.head is not None
        assert [slot.entry.name for slot in sides[0].model.head.slots] == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", STREAMED)
def test_the_plan_keeps_each_block_that_the_model_takes_from_the_walk(name: str, tmp_path: Path) -> None:
    # As in any real model, there are fewer positions than tokens.
    positions: dict[str, Any] = {"n_positions": 64} if name == "gpt2" else {}
    folder = saved(model(name, seed=1, **positions), tmp_path / "a")
    plan = planned(folder)
    walked = {block.name for block in plan.blocks}
    units = skeleton(folder, read_index(folder)).units.values()
    taken = {unit.name for unit in units if unit.slots and not unit.is_token_table} & walked
    assert taken
    assert taken <= plan.run_blocks()


def test_weights_of_8_bits_run_as_the_bfloat16_that_they_convert_to(tmp_path: Path) -> None:
    made = model("qwen3", seed=1)
    folder = saved(made, tmp_path / "a")
    short = {name: values.to(torch.float8_e4m3fn) for name, values in load_file(folder / "model.safetensors").items()}
    save_file(short, folder / "model.safetensors")
    made.load_state_dict({name: values.to(torch.bfloat16) for name, values in short.items()}, strict=False)
    with ran([folder]) as (sides, _, lockstep):
        assert lockstep.failure is None
        assert torch.equal(sides[0].last_hidden()[0], loaded(made, batches()[0]))


def test_a_reference_of_another_depth_runs_beside_the_target(tmp_path: Path) -> None:
    models = [model("llama", seed=1), model("llama", seed=2, num_hidden_layers=2)]
    folders = [saved(made, tmp_path / str(number)) for number, made in enumerate(models)]
    with ran(folders) as (sides, outputs, lockstep):
        assert lockstep.failure is None
        assert torch.equal(sides[1].last_hidden()[0], loaded(models[1], batches()[0]))
        alone = [found.name for found in outputs if found.reference is None]
    assert alone == ["model.layers.2"]


def test_a_model_whose_tensors_are_stored_otherwise_is_loaded_whole(tmp_path: Path) -> None:
    made = model("mixtral", seed=1, dtype=torch.float32)
    folder = saved(made, tmp_path / "a")
    with pytest.raises(TensorsStoredOtherwise, match="no tensor is stored for"):
        skeleton(folder, read_index(folder))
    with ran([folder], is_whole=True) as (sides, outputs, lockstep):
        assert lockstep.failure is None
        assert torch.equal(sides[0].last_hidden()[0], loaded(made, batches()[0]))
        assert "model.layers.2" in [found.name for found in outputs]


def test_a_forward_pass_that_fails_leaves_the_walk_alone(tmp_path: Path) -> None:
    folder = saved(model("llama", seed=1), tmp_path / "a")
    index = read_index(folder)
    with Reader(index) as reader:
        side = Side(skeleton(folder, index), reader, batches(), device=torch.device("cpu"))

        def refuse(found: Outputs) -> None:
            if found.name == "model.layers.1":
                msg = "no room"
                raise RuntimeError(msg)

        with Lanes(2) as lanes:
            lockstep = Lockstep(side, None, refuse, lanes=lanes)
            plan = planned(folder)
            walk = Walk(plan, target=reader, kept_blocks=plan.run_blocks())
            blocks = [result.block.name for result in lockstep.through(walk.blocks())]
            lockstep.close()
    assert lockstep.failure == "the forward pass failed: RuntimeError: no room"
    assert blocks[-1] == "lm_head"
    assert len(blocks) == 6


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{}", "no model that transformers runs by itself"),
        (
            '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}',
            "no model that transformers runs by itself",
        ),
        ('{"model_type": "t5"}', "encoder with a decoder"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "quantised"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "no model that transformers runs"),
        ("no json", "JSON is malformed"),
    ],
)
def test_what_cannot_be_run_says_why(config: str, reason: str, tmp_path: Path) -> None:
    folder = saved(model("llama", seed=1), tmp_path / "a")
    index = read_index(folder)
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelUnsupported, match=reason):
        skeleton(folder, index)


def test_a_closed_pass_ends_where_it_stopped() -> None:
    ended = []

    def work() -> int:
        stepper = Stepper.running()
        assert stepper is not None
        try:
            stepper.pause("first")
        finally:
            ended.append("first")
        return 1

    stepper = Stepper(work)
    stepper.resume()
    assert (stepper.waits_for, stepper.is_done, ended) == ("first", False, [])
    stepper.close()
    assert (stepper.is_done, ended) == (True, ["first"])
    never = Stepper(work)
    never.close()
    assert ended == ["first"]


# As on a GPU: a block on its way while the one before it computes.


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "albert", "bert"])
def test_blocks_copied_ahead_give_the_same_bits(name: str, tmp_path: Path) -> None:
    folders = [saved(model(name, seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    with ran(folders) as (sides, outputs, _), ran(folders, is_guest=True) as (guests, found, lockstep):
        assert lockstep.failure is None
        assert [one.name for one in found] == [one.name for one in outputs]
        for one, other in zip(outputs, found, strict=True):
            assert all(map(torch.equal, one.target, other.target))
            assert one.reference is not None
            assert other.reference is not None
            assert all(map(torch.equal, one.reference, other.reference))
        for side, guest in zip(sides, guests, strict=True):
            assert all(map(torch.equal, side.last_hidden(), guest.last_hidden()))
            assert all(parameter.is_meta for parameter in guest.model.model.parameters())


def test_each_block_is_on_its_way_before_the_one_before_it_runs_and_two_are_held_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[tuple[str, str]] = []
    held: list[int] = []
    copy, tell = Side.copy_ahead, Lockstep._tell

    def copying(side: Side, name: str, at_hand: Mapping[str, Bytes]) -> None:
        copy(side, name, at_hand)
        if name in side._copied:
            told.append(("copied", name))
        held.append(len(side._copied))

    def telling(lockstep: Lockstep, name: str, outputs: Sequence[Hidden | None]) -> None:
        told.append(("ran", name))
        tell(lockstep, name, outputs)

    monkeypatch.setattr(Side, "copy_ahead", copying)
    monkeypatch.setattr(Lockstep, "_tell", telling)
    with ran([saved(model("llama", seed=1), tmp_path / "a")], is_guest=True) as (sides, _, lockstep):
        assert lockstep.failure is None
        assert sides[0]._copied == {}
    blocks = [f"model.layers.{number}" for number in range(3)]
    for before, name in pairwise([*blocks, "model.norm"]):
        assert told.index(("copied", name)) < told.index(("ran", before))
    assert max(held) == 2


def test_memory_that_runs_out_on_a_gpu_ends_the_walk_and_not_only_the_pass(tmp_path: Path) -> None:
    folder = saved(model("llama", seed=1), tmp_path / "a")
    index = read_index(folder)

    def refuse(_: Outputs) -> None:
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)

    with Reader(index) as reader, Lanes(1) as lanes:
        side = Side(skeleton(folder, index), reader, batches(), device=torch.device("cpu"))
        lockstep = Lockstep(side, None, refuse, lanes=lanes, is_guest=True)
        plan = planned(folder)
        walk = Walk(plan, target=reader, kept_blocks=plan.run_blocks())
        with closing(lockstep), closing(walk.blocks()) as blocks, pytest.raises(torch.OutOfMemoryError):
            list(lockstep.through(blocks))


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_on_a_gpu_the_streamed_model_gives_what_the_loaded_one_gives(
    name: str, gpu: torch.device, tmp_path: Path
) -> None:
    made = model(name, seed=1)
    folder = saved(made, tmp_path / "a")
    with ran([folder], is_guest=True, device=gpu) as (sides, _, lockstep):
        assert lockstep.failure is None
        made.to(gpu)  # type: ignore[arg-type]
        for batch, hidden in zip(batches(), sides[0].last_hidden(), strict=True):
            mask = None if batch.attention_mask is None else batch.attention_mask.to(gpu)
            there = Batch(input_ids=batch.input_ids.to(gpu), attention_mask=mask)
            assert torch.equal(hidden, loaded(made, there))
