"""A figure as JSON for a browser: without a template, which the page adds in the reader's theme."""

import json
from typing import Final

import msgspec
import plotly.graph_objects as go
from plotly.utils import PlotlyJSONEncoder

from archaeologist.figures.themes import THEMES, template

_HTML: Final = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}
"""What could end a script element, or a line of JavaScript, in JSON that stands in one."""


def encoded(figure: go.Figure) -> str:
    """``data`` and ``layout`` as JSON that may stand in a script element."""
    document = figure.to_plotly_json()
    document["layout"].pop("template", None)
    return _escaped(json.dumps(document, cls=PlotlyJSONEncoder))


def templates() -> str:
    """Both themes as plotly templates, by name."""
    return embeddable({name: template(theme).to_plotly_json() for name, theme in THEMES.items()})


def embeddable(value: object) -> str:
    """JSON that may stand in a script element."""
    return _escaped(msgspec.json.encode(value).decode())


def _escaped(text: str) -> str:
    # One after the other: translate looks at each character of megabytes.
    for character, escape in _HTML.items():
        text = text.replace(character, escape)
    return text
