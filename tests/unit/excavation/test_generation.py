"""What models write, against a plain loop over the loaded model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from archaeologist.checkpoints.index import read_index
from archaeologist.excavation.forward import generation
from archaeologist.excavation.forward.generation import NEW_TOKENS, PROMPTS, NotGeneratedError, generate
from archaeologist.excavation.forward.model import skeleton
from archaeologist.excavation.forward.tokens import Tokens, loaded, tokenize
from archaeologist.probes.sets import load
from contracts.artifacts import Generations
from tests.fixtures.models import loaded_whole, model, saved
from tests.fixtures.tokenizers import save_tokenizer

VOCABULARY = 300


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The oracle's steps are as short as the generation's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(name: str = "llama", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    found = model(name, seed=4, dtype=torch.float32, vocab_size=VOCABULARY, **changes)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(4)  # at its usual scale a random model writes one token over and over
    return found


def checkpoint(folder: Path, found: PreTrainedModel) -> Path:
    return save_tokenizer(saved(found, folder), vocabulary=VOCABULARY)


def tokens_of(folder: Path) -> Tokens:
    return tokenize(load(), folder, fallback=None, max_tokens=4096, vocabulary=VOCABULARY)


def generated(folder: Path, *, free_bytes: float = math.inf) -> Generations:
    net = skeleton(folder, read_index(folder))
    return generate(net, lambda: loaded_whole(folder), tokens_of(folder), needed_bytes=1.0, free_bytes=free_bytes)


def greedily(net: PreTrainedModel, prompt: list[int], *, end: int | None = None) -> list[int]:
    """The likeliest token each time, without cache or padding."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            following = int(net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if following == end:
                break
            ids.append(following)
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_texts_are_a_plain_loops(name: str, tmp_path: Path) -> None:
    net = made(name, eos_token_id=None)
    folder = checkpoint(tmp_path / "a", net)
    tokens, tokenizer = tokens_of(folder), loaded(folder)
    found = generated(folder)
    chosen = [(2 * number + 1) * len(tokens.ids) // (2 * PROMPTS) for number in range(PROMPTS)]
    expected = [greedily(net, list(tokens.ids[number])) for number in chosen]
    assert [text.greedy for text in found.texts] == [
        tokenizer.decode(ids, skip_special_tokens=True)[:300] for ids in expected
    ]
    assert [text.skill for text in found.texts] == [tokens.skills[number] for number in chosen]
    pairs = {(ids[at], ids[at + 1]) for ids in expected for at in range(NEW_TOKENS - 1)}
    assert found.greedy.distinct_2 == len(pairs) / (PROMPTS * (NEW_TOKENS - 1))
    assert (found.greedy.texts, found.greedy.tokens, found.greedy.ended) == (PROMPTS, PROMPTS * NEW_TOKENS, 0)


def test_sampled_texts_are_the_same_each_time_and_not_the_greedy_ones(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", made())
    state = torch.random.get_rng_state()
    first, second = generated(folder), generated(folder)
    assert first == second
    assert [text.sampled for text in first.texts] != [text.greedy for text in first.texts]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_text_ends_where_the_model_ends_it_and_the_checkpoints_own_ways_do_not_count(tmp_path: Path) -> None:
    net = made(eos_token_id=None)
    folder = checkpoint(tmp_path / "a", net)
    tokens = tokens_of(folder)
    first = greedily(net, list(tokens.ids[len(tokens.ids) // 16]))
    end = first[5]
    assert net.generation_config is not None
    net.generation_config.eos_token_id = end
    net.generation_config.repetition_penalty = 5.0
    net.generation_config.max_length = 3
    net.generation_config.save_pretrained(folder)
    found = generated(folder)
    cut = greedily(net, list(tokens.ids[len(tokens.ids) // 16]), end=end)
    assert found.texts[0].greedy == loaded(folder).decode(cut, skip_special_tokens=True)[:300]
    assert found.greedy.ended >= 1


def test_a_model_that_is_there_whole_is_used_as_it_is(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", made())
    there = loaded_whole(folder)
    found = generate(there, lambda: there, tokens_of(folder), needed_bytes=1.0, free_bytes=0.0)
    assert found == generated(folder)


def test_why_there_are_no_texts_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "a", made(max_position_embeddings=64))
    with pytest.raises(NotGeneratedError, match="needs 1 bytes of memory and 0 are free"):
        generated(folder, free_bytes=0.0)
    monkeypatch.setattr(generation, "NEW_TOKENS", 64)
    with pytest.raises(NotGeneratedError, match="takes 64 positions, and texts of 64 tokens"):
        generated(folder)
    encoder = checkpoint(tmp_path / "b", model("bert", seed=1, vocab_size=VOCABULARY))
    with pytest.raises(NotGeneratedError, match="no causal head"):
        generated(encoder)


def test_what_is_kept_of_a_text_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "KEPT_CHARACTERS", 7)
    found = generated(checkpoint(tmp_path / "a", made()))
    assert max(len(part) for text in found.texts for part in (text.prompt, text.greedy, text.sampled)) == 7
