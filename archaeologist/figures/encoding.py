"""A figure as JSON for a browser: without a template, which the page adds in the reader's theme."""

import json
from typing import Final

import msgspec
import plotly.graph_objects as go

from archaeologist.figures.themes import THEMES, template

_HTML: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What could end a script element, or a line of JavaScript, in JSON that stands in one."""


def encoded(figure: go.Figure) -> str:
    """``data`` and ``layout`` as JSON that may stand in a script element."""
    bare = go.Figure(figure).update_layout(template=None)
    document = json.loads(bare.to_json())
    document["layout"].pop("template", None)
    return embeddable(document)


def templates() -> str:
    """Both themes as plotly templates, by name."""
    return embeddable({name: template(theme).to_plotly_json() for name, theme in THEMES.items()})


def embeddable(value: object) -> str:
    """JSON that may stand in a script element."""
    text = msgspec.json.encode(value).decode()
    return "".join(_HTML.get(character, character) for character in text)
