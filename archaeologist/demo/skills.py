"""The two skills that the demo's model learns, as text: BIN and SY.

BIN writes a number below 256 in binary ("005 -> 00000101"), SY the first letters of three words ("apple moon kite ->
amk"). Both have held-out examples: numbers and word triples that training never shows. Pure and deterministic.
"""

import random
from typing import Final, NamedTuple

BIN: Final = "BIN"
SY: Final = "SY"
SKILLS: Final = (BIN, SY)

NUMBERS: Final = 256
DIGITS: Final = 3
BITS: Final = 8
HELD_OUT_NUMBERS: Final = 32
HELD_OUT_TRIPLES: Final = 64
WORDS_AT_A_TIME: Final = 3
ARROW: Final = " -> "

WORDS: Final = tuple(
    """
    apple ball cat dog egg fig goat hat ice jam kite lamp moon nut oak pig quiz rose sun top urn vase wolf yak zoo
    ant bear cup duck elk fox gem hill ink jar key leaf map nest owl pear queen rain star tree unit veil wind yarn zest
    """.split()  # noqa: SIM905 -- fifty words read better than fifty strings
)


class Example(NamedTuple):
    """A question with its one right answer."""

    skill: str
    question: str
    answer: str


def binary(number: int) -> Example:
    """BIN's example of a number."""
    return Example(BIN, f"{number:0{DIGITS}d}{ARROW}", f"{number:0{BITS}b}")


def first_letters(words: list[str]) -> Example:
    """SY's example of some words."""
    return Example(SY, " ".join(words) + ARROW, "".join(word[0] for word in words))


def held_out(seed: int) -> list[Example]:
    """The examples for evaluation."""
    triples = sorted(_held_out_triples(seed))
    return [binary(number) for number in _held_out_numbers(seed)] + [first_letters(list(words)) for words in triples]


def training(seed: int, *, count: int, bin_share: float) -> list[Example]:
    """Examples to learn from, none of them held out.

    Args:
        seed: The same as for ``held_out``.
        count: How many; numbers come again and again, as there are only so many.
        bin_share: Share of BIN among them: it is the harder one.
    """
    chance = random.Random(f"{seed} training")  # noqa: S311 -- examples, no secrets
    kept_numbers = set(_held_out_numbers(seed))
    kept_triples = _held_out_triples(seed)
    numbers = [number for number in range(NUMBERS) if number not in kept_numbers]
    examples: list[Example] = []
    while len(examples) < count:
        if chance.random() < bin_share:
            examples.append(binary(chance.choice(numbers)))
            continue
        words = chance.sample(WORDS, WORDS_AT_A_TIME)
        if tuple(words) not in kept_triples:
            examples.append(first_letters(words))
    return examples


def _held_out_numbers(seed: int) -> list[int]:
    return sorted(random.Random(f"{seed} numbers").sample(range(NUMBERS), HELD_OUT_NUMBERS))  # noqa: S311 -- no secret


def _held_out_triples(seed: int) -> set[tuple[str, ...]]:
    chance = random.Random(f"{seed} triples")  # noqa: S311 -- examples, no secrets
    triples: set[tuple[str, ...]] = set()
    while len(triples) < HELD_OUT_TRIPLES:
        triples.add(tuple(chance.sample(WORDS, WORDS_AT_A_TIME)))
    return triples
