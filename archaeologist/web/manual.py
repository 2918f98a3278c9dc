"""The page on the statistics, docs/statistics.md, as a document of this server, and the definitions that it gives.

The page links to it, and shows a field's definition where the pointer or the keyboard is on its name. The text lies in
the package as a link to docs/, so that there is one.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

import archaeologist
from contracts.http import Definition

ENVIRONMENT: Final = Environment(
    loader=PackageLoader("archaeologist.web", "assets"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PLACE: Final = "/docs/statistics"

_HEADINGS: Final = {"h2", "h3"}
_COLUMNS: Final = 2


def document() -> bytes:
    """The page on the statistics as HTML."""
    body = Markup(_markdown().renderer.render(_tokens(), _markdown().options, {}))  # noqa: S704 -- our own text
    template = ENVIRONMENT.get_template("document.html.jinja")
    return template.render(title="The statistics", version=archaeologist.__version__, body=body).encode()


def glossary() -> bytes:
    """Every field that a table of the page on the statistics defines."""
    return msgspec.json.encode(definitions())


@cache
def definitions() -> dict[str, dict[str, Definition]]:
    """What each field means, by the section that defines it and the field's name."""
    found: dict[str, dict[str, Definition]] = {}
    section = ""
    tokens = _tokens()
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag in _HEADINGS:
            section = str(token.attrGet("id"))
        elif token.type == "tr_open":
            cells = _cells(tokens[place:])
            if len(cells) >= _COLUMNS:
                text, address = _plain(cells[1]), f"{PLACE}#{section}"
                for name in _fields(cells[0]):
                    found.setdefault(section, {}).setdefault(name, Definition(text=text, address=address))
    return found


@cache
def _markdown() -> MarkdownIt:
    # Markup within the text stays text.
    return MarkdownIt("commonmark", {"html": False}).enable("table")


@cache
def _tokens() -> Sequence[Token]:
    """The parsed text, each heading with the id that links name."""
    text = (resources.files("archaeologist.web") / "assets" / "statistics.md").read_text(encoding="utf-8")
    tokens = _markdown().parse(text)
    for heading, words in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", slug(words))
    return tokens


def slug(heading: Token) -> str:
    """A heading's id: its words up to what stands in brackets or behind a colon, in small letters."""
    words = re.split(r"[,:(]", _plain(heading))[0]
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _cells(row: Sequence[Token]) -> list[Token]:
    """The contents of a table's row, which begins with the first of these tokens."""
    end = next(place for place, token in enumerate(row) if token.type == "tr_close")
    return [cell for opening, cell in itertools.pairwise(row[:end]) if opening.type == "td_open"]


def _fields(cell: Token) -> Iterator[str]:
    """The names of fields that a cell begins a row with; what is a path or a pattern is none."""
    for part in cell.children or ():
        if part.type == "code_inline" and part.content.isidentifier():
            yield part.content


def _plain(inline: Token) -> str:
    """The text without its marks."""
    return "".join(
        part.content or " " for part in inline.children or () if part.type in {"text", "code_inline", "softbreak"}
    )
