"""Probes as token ids: which tokenizer, how many tokens, which sequences run together."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from archaeologist.errors import NoTokens, TokenizerMissing, TokenizerUnfit
from archaeologist.excavation.forward.tokens import (
    MAX_CELLS,
    MAX_PADDING,
    Tokens,
    batch_limits,
    batched,
    find_tokenizer,
    tokenize,
)
from archaeologist.probes.sets import Probe, ProbeSet, load
from tests.fixtures.tokenizers import save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("checkpoint"), vocabulary=100)


def tokens(folder: Path, *, probes: ProbeSet | None = None, max_tokens: int = 4096, vocabulary: int = 100) -> Tokens:
    return tokenize(probes or load(), folder, fallback=None, max_tokens=max_tokens, vocabulary=vocabulary)


def saved_words(vocabulary: dict[str, int], folder: Path, *, unknown: str | None = None) -> Tokenizer:
    """A tokenizer of whole words, saved; without a token for unknown words it fails on them."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, **({"unk_token": unknown} if unknown else {})))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return tokenizer


def test_every_probe_becomes_a_sequence_with_its_skill(folder: Path) -> None:
    found = tokens(folder)
    assert len(found.ids) == 11
    assert found.skills == tuple(probe.skill for probe in load().probes)
    assert not found.truncated
    assert sorted(number for batch in found.batches for number in batch) == list(range(11))
    assert found.path == str(folder)


def test_special_tokens_are_added_as_the_tokenizer_does(folder: Path, tmp_path: Path) -> None:
    start = tokens(save_tokenizer(tmp_path / "s", vocabulary=100, has_start=True))
    plain = tokens(folder)
    assert {ids[0] for ids in start.ids} == {2}
    assert [ids[1:] for ids in start.ids] == list(plain.ids)
    assert start.sha256 != plain.sha256


def test_the_number_of_tokens_is_a_hard_limit_and_the_last_sequence_is_cut(folder: Path) -> None:
    everything = tokens(folder)
    lengths = [len(ids) for ids in everything.ids]
    limit = lengths[0] + lengths[1] + 2
    found = tokens(folder, max_tokens=limit)
    assert [len(ids) for ids in found.ids] == [lengths[0], lengths[1], 2]
    assert found.ids[2] == everything.ids[2][:2]
    assert found.truncated
    exact = tokens(folder, max_tokens=sum(lengths))
    assert (exact.ids, exact.truncated) == (everything.ids, False)
    assert tokens(folder, max_tokens=sum(lengths) - 1).truncated


def test_the_checkpoints_tokenizer_goes_before_the_settings(folder: Path, tmp_path: Path) -> None:
    other = save_tokenizer(tmp_path / "other")
    assert find_tokenizer(folder, fallback=other) == folder
    assert find_tokenizer(tmp_path, fallback=other) == other
    with pytest.raises(TokenizerMissing, match=r"activations\.tokenizers"):
        find_tokenizer(tmp_path, fallback=None)
    with pytest.raises(TokenizerMissing, match="nowhere"):
        find_tokenizer(tmp_path, fallback=tmp_path / "nowhere")


def test_ids_beyond_the_embedding_are_refused(folder: Path) -> None:
    with pytest.raises(TokenizerUnfit, match="the model has 10 embeddings"):
        tokens(folder, vocabulary=10)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "mine"}}'])
def test_a_broken_tokenizer_says_so(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerUnfit, match="cannot be loaded"):
        tokens(tmp_path)


def test_texts_without_tokens_leave_nothing_to_run(folder: Path) -> None:
    probes = ProbeSet(name="empty", source="empty", probes=(Probe(text=" "),), sha256="")
    with pytest.raises(NoTokens, match="no probe of 'empty' gives a token"):
        tokens(folder, probes=probes)


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "BertTokenizer"])
def test_a_configuration_without_a_vocabulary_is_no_tokenizer(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(TokenizerMissing):
        tokens(tmp_path)


def test_a_tokenizer_that_wants_code_from_elsewhere_is_refused(tmp_path: Path) -> None:
    remote = {"auto_map": {"AutoTokenizer": ["stranger/repository--code.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(remote))
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(TokenizerUnfit, match="cannot be loaded"):
        tokens(tmp_path)


def test_a_text_on_which_the_tokenizer_fails_makes_it_unfit(tmp_path: Path) -> None:
    saved_words({"What": 0}, tmp_path)
    with pytest.raises(TokenizerUnfit, match="fails on 'What is 15"):
        tokens(tmp_path)


def test_truncation_and_padding_saved_with_a_tokenizer_do_not_apply(tmp_path: Path) -> None:
    words = saved_words({"<unk>": 0, "What": 1, "is": 2}, tmp_path, unknown="<unk>")
    words.enable_truncation(2)
    words.enable_padding(length=20)
    words.save(str(tmp_path / "tokenizer.json"))
    # What is 15 + 27 ?
    assert tokens(tmp_path).ids[0] == (1, 2, 0, 0, 0, 0)


def test_a_sequence_longer_than_the_model_takes_is_cut_and_the_others_are_not(folder: Path) -> None:
    everything = tokens(folder)
    longest = max(len(ids) for ids in everything.ids)
    found = tokenize(load(), folder, fallback=None, max_tokens=4096, vocabulary=100, positions=longest - 1)
    assert found.truncated
    assert found.ids == tuple(ids[: longest - 1] for ids in everything.ids)
    assert not tokenize(load(), folder, fallback=None, max_tokens=4096, vocabulary=100, positions=longest).truncated


def test_beyond_the_limit_no_text_is_tokenized(tmp_path: Path) -> None:
    saved_words({"one": 0, "two": 1}, tmp_path)
    # The tokenizer fails on the third.
    texts = ("one two", "two one", "three")
    probes = ProbeSet(name="words", source="words", probes=tuple(Probe(text=text) for text in texts), sha256="")
    found = tokens(tmp_path, probes=probes, max_tokens=3)
    assert (found.ids, found.truncated) == (((0, 1), (1,)), True)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_batches_hold_each_sequence_once_with_little_padding(lengths: list[int]) -> None:
    batches = batched(lengths)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        cells = len(batch) * max(lengths[number] for number in batch)
        assert cells - sum(lengths[number] for number in batch) <= MAX_PADDING * cells
        assert cells <= MAX_CELLS or len(batch) == 1


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60))
def test_smaller_and_smaller_batches_end_with_one_sequence_each(lengths: list[int]) -> None:
    limits = batch_limits(lengths)
    found = [batched(lengths, cells=cells) for cells in limits]
    assert limits[0] == MAX_CELLS
    assert list(limits) == sorted(set(limits), reverse=True)
    assert len(set(found)) == len(found)
    assert all(len(batch) == 1 for batch in found[-1])
    for cells, batches in zip(limits, found, strict=True):
        assert all(
            len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= cells for batch in batches
        )
