"""The JSON of a timeline in pieces, so that a longer one takes over what the one in place has. Pure.

One more checkpoint makes each of a timeline's arrays longer by one entry. Encoding all the others again is most of the
work in a long campaign; copying them as text is not. In pieces or in one go, the JSON is the same, byte for byte.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self

import msgspec
from msgspec import Struct

NOT_ALIGNED: Final = frozenset({"version", "campaign_id", "hero_id", "layers", "left_out", "alerts"})
"""Fields of a timeline that have no entry for each checkpoint."""
ALWAYS: Final = ("name", "layer_type", "block")
"""Such fields of its blocks."""

Span = tuple[int, int]
"""Begin and end, in bytes."""


class Pieces(NamedTuple):
    """A timeline's JSON."""

    texts: tuple[bytes, ...]
    """Joined, they are it."""
    arrays: tuple[int, ...]
    """Which of them are the entries of an array, without its brackets."""

    @classmethod
    def of(cls, timeline: Struct) -> Self:
        """What ``msgspec.json.encode`` makes of it."""
        found = tuple(_pieces(timeline))
        return cls(tuple(text for text, _ in found), tuple(at for at, (_, is_array) in enumerate(found) if is_array))

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where the entries of each array lie."""
        begins = [0]
        for text in self.texts:
            begins.append(begins[-1] + len(text))
        return tuple((begins[at], begins[at + 1]) for at in self.arrays)

    def after(self, earlier: bytes, spans: Sequence[Span]) -> Self:
        """These pieces with each array's entries behind those that an earlier timeline's JSON has in its spans."""
        texts = list(self.texts)
        for at, (begin, end) in zip(self.arrays, spans, strict=True):
            parts = [part for part in (earlier[begin:end], texts[at]) if part]
            texts[at] = b",".join(parts)
        return self._replace(texts=tuple(texts))


def _pieces(record: Struct) -> Iterator[tuple[bytes, bool]]:
    """Each piece, and whether it is the entries of an array."""
    before = b"{"
    for name in record.__struct_fields__:
        value = getattr(record, name)
        yield before + _key(name), False
        if name == "layers":
            yield from _layers(value)
        elif name in NOT_ALIGNED or name in ALWAYS:
            yield msgspec.json.encode(value), False
        else:
            yield b"[", False
            yield msgspec.json.encode(value)[1:-1], True
            yield b"]", False
        before = b","
    yield b"}", False


def _layers(layers: dict[str, Struct]) -> Iterator[tuple[bytes, bool]]:
    before = b"{"
    for name, layer in layers.items():
        yield before + _key(name), False
        yield from _pieces(layer)
        before = b","
    yield (b"}" if layers else b"{}"), False


def _key(name: str) -> bytes:
    return msgspec.json.encode(name) + b":"
