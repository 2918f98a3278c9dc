"""Parts of a timeline: some blocks, some steps, some fields. Pure."""

from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec

from archaeologist.errors import ParameterInvalid
from archaeologist.summaries.seams import ALWAYS, NOT_ALIGNED
from contracts.artifacts import DriftTimeline, HealthTimeline

MAX_TEXT: Final = 2000
MAX_NAMES: Final = 100

Timeline = TypeVar("Timeline", DriftTimeline, HealthTimeline)


class Choice(NamedTuple):
    """Which part of a timeline; None: all."""

    layers: tuple[str, ...] | None = None
    """Blocks whose name contains one of these."""
    fields: tuple[str, ...] | None = None
    """Of each block."""
    first_step: int | None = None
    last_step: int | None = None

    @classmethod
    def of(
        cls,
        layer: type[msgspec.Struct],
        *,
        layers: str | None,
        fields: str | None,
        first_step: int | None,
        last_step: int | None,
    ) -> Self:
        """The choice that a request's parameters say.

        Args:
            layer: What the timeline has for a block.
            layers: Parts of names with commas.
            fields: Names of its fields with commas.
            first_step: From this step on.
            last_step: Up to this one.

        Raises:
            ParameterInvalid: A list is too long, or a field is not one of the block's.
        """
        chosen = _names("fields", fields)
        known = fields_of(layer)
        if unknown := [name for name in chosen or () if name not in known]:
            msg = f"fields={unknown[0][:100]!r} is not known; use some of: {', '.join(known)}"
            raise ParameterInvalid(msg)
        return cls(_names("layers", layers), chosen, first_step, last_step)


def fields_of(layer: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields of a block that can be chosen."""
    return tuple(field.name for field in msgspec.structs.fields(layer) if field.name not in ALWAYS)


def part(timeline: Timeline, choice: Choice) -> dict[str, Any]:
    """The chosen part of a timeline; every array has an entry for each of its checkpoints."""
    low = choice.first_step if choice.first_step is not None else 0
    kept = [low <= step and (choice.last_step is None or step <= choice.last_step) for step in timeline.checkpoints]
    # Steps ascend, so what is kept is one stretch.
    begin = kept.index(True) if any(kept) else 0
    stretch = slice(begin, begin + sum(kept))
    whole = {
        name: value if name in NOT_ALIGNED else value[stretch]
        for name, value in msgspec.structs.asdict(timeline).items()
    }
    if "alerts" in whole:
        steps = frozenset(whole["checkpoints"])
        whole["alerts"] = [alert for alert in whole["alerts"] if alert.checkpoint_step in steps]
    whole["layers"] = {
        name: _layer(layer, stretch, choice.fields)
        for name, layer in timeline.layers.items()
        if choice.layers is None or any(wanted in name for wanted in choice.layers)
    }
    return whole


def _layer(layer: msgspec.Struct, stretch: slice, fields: tuple[str, ...] | None) -> dict[str, Any]:
    values = msgspec.structs.asdict(layer)
    chosen = [name for name in values if name not in ALWAYS and (fields is None or name in fields)]
    return {
        **{name: values[name] for name in ALWAYS if name in values},
        **{name: values[name][stretch] for name in chosen},
    }


def _names(parameter: str, text: str | None) -> tuple[str, ...] | None:
    """The names in a list with commas; None where there are none, which chooses everything."""
    if text is None:
        return None
    if len(text) > MAX_TEXT:
        msg = f"{parameter} of {len(text)} characters; at most {MAX_TEXT} are read, parts of names are enough"
        raise ParameterInvalid(msg)
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(found) > MAX_NAMES:
        msg = f"{parameter} has {len(found)} names; at most {MAX_NAMES} are read, parts of names are enough"
        raise ParameterInvalid(msg)
    return found or None
