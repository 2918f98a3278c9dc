"""Probes as token ids, in batches that run together. Imports transformers only once there is a tokenizer to load."""

import filecmp
import hashlib
import reprlib
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from archaeologist.errors import NoTokens, TokenizerMissing, TokenizerUnfit
from archaeologist.probes.sets import ProbeSet

MARKS: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""A folder with one of these has a tokenizer. Of a tokenizer_config.json alone transformers makes an empty one."""
MAX_CELLS: Final = 1024
"""Of a batch, padding included; a longer sequence runs alone."""
MAX_PADDING: Final = 0.25


class Tokens(Struct, frozen=True, kw_only=True):
    """The probes as the model gets them."""

    ids: tuple[tuple[int, ...], ...]
    """One a probe that is kept."""
    skills: tuple[str | None, ...]
    batches: tuple[tuple[int, ...], ...]
    """Numbers of the sequences that run together, padded on the right to the longest."""
    truncated: bool
    """Whether a sequence was cut or left out."""
    sha256: str
    """Of the ids in order."""
    path: str
    """The tokenizer's folder."""
    pad_id: int


def find_tokenizer(checkpoint: Path, *, fallback: Path | None) -> Path:
    """The folder that the tokenizer is loaded from: the checkpoint's, else the settings'. Imports nothing.

    Raises:
        TokenizerMissing: Neither has one.
    """
    for folder in (checkpoint, fallback):
        if folder is not None and has_tokenizer(folder):
            return folder
    searched = " and ".join(repr(str(folder)) for folder in (checkpoint, fallback) if folder is not None)
    msg = (
        f"no tokenizer ({MARKS[0]}, …) in {searched}; save it with the checkpoint, or name its folder: analyze"
        " --tokenizer, or the setting activations.tokenizers under the model_ref"
    )
    raise TokenizerMissing(msg)


def has_tokenizer(folder: Path) -> bool:
    """Whether one can be loaded from there."""
    return any((folder / mark).is_file() for mark in MARKS)


def tokenize(
    probes: ProbeSet,
    checkpoint: Path,
    *,
    fallback: Path | None,
    max_tokens: int,
    vocabulary: int,
    positions: int | None = None,
) -> Tokens:
    """The probes as token ids, with the special tokens that the tokenizer adds by default.

    Args:
        probes: Texts in order.
        checkpoint: Where the tokenizer is looked for first.
        fallback: Where else.
        max_tokens: Of all sequences together: the one that passes it is cut, later ones are left out.
        vocabulary: Rows of the model's embedding.
        positions: The longest sequence that the model takes; longer ones are cut. None: any.

    Raises:
        TokenizerMissing: There is none.
        TokenizerUnfit: It cannot be loaded, fails on a text, or gives ids that the model has no embedding for.
        NoTokens: Nothing is left to run.
    """
    folder = find_tokenizer(checkpoint, fallback=fallback)
    tokenizer = loaded(folder)
    kept: list[tuple[tuple[int, ...], str | None]] = []
    left, is_cut = max_tokens, False
    for probe in probes.probes:
        ids = _ids(tokenizer, probe.text, folder)
        room = left if positions is None else min(left, positions)
        is_cut = is_cut or len(ids) > room
        if ids := ids[:room]:
            kept.append((ids, probe.skill))
        left -= len(ids)
        if is_cut and left == 0:
            break
    if not kept:
        msg = (
            f"no probe of {probes.source!r} gives a token with the tokenizer in {str(folder)!r}, one is the least;"
            " use probes in a language that it knows"
        )
        raise NoTokens(msg)
    sequences = tuple(ids for ids, _ in kept)
    _check_fit(sequences, vocabulary, folder)
    return Tokens(
        ids=sequences,
        skills=tuple(skill for _, skill in kept),
        batches=batched([len(ids) for ids in sequences]),
        truncated=is_cut,
        sha256=hashlib.sha256(repr(sequences).encode()).hexdigest(),
        path=str(folder),
        pad_id=min(_pad_id(tokenizer), vocabulary - 1),
    )


def is_same_tokenizer(folder: Path, other: Path, probes: ProbeSet) -> bool:
    """Whether another folder's tokenizer gives the probes the same tokens; True where it has none that can be used.

    Args:
        folder: With a tokenizer.
        other: Perhaps with one.
        probes: Only of these is it known.
    """
    try:
        theirs = find_tokenizer(other, fallback=None)
        files = (*MARKS, "tokenizer_config.json")
        if theirs == folder or all(_is_same_file(folder / name, theirs / name) for name in files):
            return True
        mine, others = loaded(folder), loaded(theirs)
        return all(_ids(mine, probe.text, folder) == _ids(others, probe.text, theirs) for probe in probes.probes)
    except (TokenizerMissing, TokenizerUnfit):
        return True


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:
        return path.exists() == other.exists()


def batched(lengths: list[int], *, cells: int = MAX_CELLS) -> tuple[tuple[int, ...], ...]:
    """Sequences of similar length together: few cells of padding, few passes. The same for the same lengths.

    Args:
        lengths: Of the sequences.
        cells: Of a batch at most, padding included; a longer sequence runs alone.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        batch = [*batches[-1], number] if batches else []
        # The new one is the longest: all are padded to it.
        filled = len(batch) * lengths[number]
        padding = filled - sum(lengths[member] for member in batch)
        if batch and filled <= cells and padding <= MAX_PADDING * filled:
            batches[-1] = batch
        else:
            batches.append([number])
    return tuple(tuple(batch) for batch in batches)


def batch_limits(lengths: list[int], *, most: int = MAX_CELLS) -> tuple[int, ...]:
    """Cells of a batch, each limit half of the one before, down to one sequence a batch; only those that change it."""
    limits = [most]
    batches = batched(lengths, cells=most)
    cells = most
    while len(batches) < len(lengths) and cells > 1:
        cells //= 2
        smaller = batched(lengths, cells=cells)
        if smaller != batches:
            limits.append(cells)
            batches = smaller
    return tuple(limits)


def loaded(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        TokenizerUnfit: It cannot be loaded.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        text = str(error).split("\n", maxsplit=1)[0]
        msg = f"the tokenizer in {str(folder)!r} cannot be loaded: {text}; save it again with save_pretrained"
        raise TokenizerUnfit(msg) from error


def _ids(tokenizer: Any, text: str, folder: Path) -> tuple[int, ...]:
    try:
        # Without a warning of texts longer than the model takes: they are cut.
        return tuple(tokenizer(text, verbose=False)["input_ids"])
    except Exception as error:  # the tokenizers library raises bare Exceptions
        msg = (
            f"the tokenizer in {str(folder)!r} fails on {reprlib.repr(text)}: {error}; use the one of the training run"
        )
        raise TokenizerUnfit(msg) from error


def _check_fit(sequences: tuple[tuple[int, ...], ...], vocabulary: int, folder: Path) -> None:
    largest = max(max(ids) for ids in sequences)
    if largest >= vocabulary:
        msg = (
            f"the tokenizer in {str(folder)!r} gives id {largest} and the model has {vocabulary} embeddings; use the"
            " tokenizer that the model was trained with"
        )
        raise TokenizerUnfit(msg)


def _pad_id(tokenizer: Any) -> int:
    """Any id will do: padding is masked out."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found or 0)
