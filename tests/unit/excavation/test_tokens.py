"""Probes as token ids: which tokenizer, how many tokens, which sequences run together."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archaeologist.errors import NoTokens, TokenizerMissing, TokenizerUnfit
from archaeologist.excavation.forward.tokens import MAX_CELLS, MAX_PADDING, Tokens, batched, find_tokenizer, tokenize
from archaeologist.probes.sets import Probe, ProbeSet, load
from tests.fixtures.tokenizers import save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("checkpoint"), vocabulary=100)


def tokens(folder: Path, *, probes: ProbeSet | None = None, max_tokens: int = 4096, vocabulary: int = 100) -> Tokens:
    return tokenize(probes or load(), folder, fallback=None, max_tokens=max_tokens, vocabulary=vocabulary)


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
    with pytest.raises(NoTokens, match="max_probe_tokens"):
        tokens(folder, probes=probes)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_batches_hold_each_sequence_once_with_little_padding(lengths: list[int]) -> None:
    batches = batched(lengths)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        cells = len(batch) * max(lengths[number] for number in batch)
        assert cells - sum(lengths[number] for number in batch) <= MAX_PADDING * cells
        assert cells <= MAX_CELLS or len(batch) == 1
