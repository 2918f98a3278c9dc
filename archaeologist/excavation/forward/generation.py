"""What the model writes: short continuations of some probes, greedily and sampled with a fixed seed.

Generation goes through all blocks for every token, so the model is in memory whole for it, after the walk. Called by
``probing``. On the CPU, or where a model that was loaded whole already is.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from msgspec import Struct
from transformers import GenerationConfig, PreTrainedModel

from archaeologist.excavation.forward.model import Skeleton
from archaeologist.excavation.forward.tokens import Tokens, loaded
from archaeologist.statistics.repetition import summary
from contracts.artifacts import GeneratedText, Generations

PROMPTS: Final = 8
NEW_TOKENS: Final = 32
"""Of each text, at most."""
PROMPT_TOKENS: Final = 64
"""Of each prompt; of a longer one the first so many."""
SEED: Final = 20_251_122
TEMPERATURE: Final = 1.0
KEPT_CHARACTERS: Final = 300
"""Of a prompt or text in the artifact."""


class NotGeneratedError(Exception):
    """There are no texts; the message says why."""


class _Written(Struct, frozen=True):
    """The continuations of all prompts in one way: ids without what ends them, and how many were ended."""

    ids: list[list[int]]
    ended: int


def generate(
    model: Skeleton, load: Callable[[], Skeleton], tokens: Tokens, *, needed_bytes: float, free_bytes: float
) -> Generations:
    """Texts and how much they repeat, the same for the same weights and probes on one machine.

    Args:
        model: The target's, with or without its weights.
        load: Gives the model whole.
        tokens: The probes.
        needed_bytes: What loading the model whole may take.
        free_bytes: What is there.

    Raises:
        NotGeneratedError: The model writes no texts, or does not fit.
        ArchaeologistError: It cannot be loaded.
    """
    if model.head is None:
        msg = "the model has no causal head"
        raise NotGeneratedError(msg)
    chosen = _chosen(tokens, getattr(model.model.config, "max_position_embeddings", None))
    net = model.model
    if next(net.parameters()).is_meta:
        if needed_bytes > free_bytes:
            msg = f"the model whole needs {needed_bytes:.0f} bytes of memory and {free_bytes:.0f} are free"
            raise NotGeneratedError(msg)
        net = load().model
    prompts = [list(tokens.ids[number][:room]) for number, room in chosen]
    greedy = _written(net, prompts, pad_id=tokens.pad_id, is_sampled=False)
    sampled = _written(net, prompts, pad_id=tokens.pad_id, is_sampled=True)
    tokenizer = loaded(Path(tokens.path))
    return Generations(
        greedy=summary(greedy.ids, ended=greedy.ended),
        sampled=summary(sampled.ids, ended=sampled.ended),
        seed=SEED,
        temperature=TEMPERATURE,
        max_new_tokens=NEW_TOKENS,
        texts=tuple(
            GeneratedText(
                prompt=_text(tokenizer, prompt),
                skill=tokens.skills[number],
                greedy=_text(tokenizer, first),
                sampled=_text(tokenizer, second),
            )
            for (number, _), prompt, first, second in zip(chosen, prompts, greedy.ids, sampled.ids, strict=True)
        ),
    )


def _chosen(tokens: Tokens, positions: int | None) -> list[tuple[int, int]]:
    """Numbers of the probes, evenly spaced, and how many tokens of each the model has room for."""
    room = PROMPT_TOKENS if positions is None else min(PROMPT_TOKENS, positions - NEW_TOKENS)
    if room < 1:
        msg = f"the model takes {positions} positions, and texts of {NEW_TOKENS} tokens are written"
        raise NotGeneratedError(msg)
    count = min(PROMPTS, len(tokens.ids))
    return [((2 * number + 1) * len(tokens.ids) // (2 * count), room) for number in range(count)]


def _written(model: PreTrainedModel, prompts: Sequence[list[int]], *, pad_id: int, is_sampled: bool) -> _Written:
    # Padded on the left, so that all go on at the same place.
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = _ends(model)
    how: dict[str, Any] = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0} if is_sampled else {}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=NEW_TOKENS,
        do_sample=is_sampled,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad_id,
        **how,
    )
    with _configured(model, config), _one_thread(), torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(SEED)
        found = model.generate(  # type: ignore[operator]
            ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
    rows = [row[longest:].tolist() for row in found]
    cut = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return _Written(
        [row[:stop] for row, stop in zip(rows, cut, strict=True)],
        sum(stop < len(row) for row, stop in zip(rows, cut, strict=True)),
    )


@contextlib.contextmanager
def _configured(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Only our own configuration in force: what a checkpoint's own says fills gaps, penalties for repeats for one."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """So that the number of threads changes no text.

    And because the steps are short: beside a busy neighbour torch's threads did little but wait for each other, and
    two of them took a hundred times as long as one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _ends(model: PreTrainedModel) -> list[int]:
    """Tokens that end a text, as the checkpoint says."""
    sources: tuple[Any, ...] = (model.generation_config, model.config)
    found = next((ends for source in sources if (ends := getattr(source, "eos_token_id", None)) is not None), None)
    return [found] if isinstance(found, int) else list(found or [])


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text[:KEPT_CHARACTERS]
