"""Text in a figure: names from checkpoints as text, never as plotly's markup; short and unambiguous."""

import html
from collections.abc import Sequence
from typing import Final

LONGEST: Final = 28
"""Characters of a label: on a narrow screen it must leave room for the figure."""


def plain(text: str) -> str:
    """The text as plotly shows it literally: it reads tags, entities and line breaks in every label."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return html.escape(printable, quote=False)


def short(names: Sequence[str]) -> dict[str, str]:
    """Each name without the dotted beginning that all names with a dot share, escaped; unambiguous."""
    dotted = [name.split(".") for name in names if "." in name]
    common = 0
    while dotted and all(len(parts) > common + 1 and parts[common] == dotted[0][common] for parts in dotted):
        common += 1
    if common and any(parts[common].isdecimal() for parts in dotted):
        common -= 1  # "layers.15" is never just "15"
    cut = {name: ".".join(name.split(".")[common:]) if "." in name else name for name in names}
    for found in ({name: _shortened(label) for name, label in cut.items()}, cut):
        if len(set(found.values())) == len(found):
            return {name: plain(label) for name, label in found.items()}
    return {name: plain(name) for name in names}


def _shortened(label: str) -> str:
    """Its beginning and its end: what tells parts of a model apart stands there."""
    return label if len(label) <= LONGEST else f"{label[: LONGEST // 3]}…{label[LONGEST // 3 + 1 - LONGEST :]}"
