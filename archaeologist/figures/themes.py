"""The colours of the page, the report and the figures: two themes, contrast at least 4.5 to 1 for every text."""

from typing import Any, Final

import plotly.graph_objects as go
from msgspec import Struct

SANS: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
SERIF: Final = "'Iowan Old Style', 'Palatino Linotype', Palatino, Georgia, serif"
FONTS: Final = f"--sans: {SANS}; --serif: {SERIF};"
"""As variables of a style sheet."""


class Theme(Struct, frozen=True, kw_only=True):
    """Colours as ``#rrggbb``."""

    ground: str
    raised: str
    """Of what lies on the ground: cards, table heads, hover labels."""
    text: str
    muted: str
    rule: str
    """Thin lines, never text."""
    interaction: str
    warning: str
    critical: str
    lines: tuple[str, ...]
    """Of a figure's lines, in order; told apart by colour-blind readers, and dashed differently besides."""


DARK: Final = Theme(
    ground="#16130f",
    raised="#201b16",
    text="#ece3d0",
    muted="#b5a88f",
    rule="#40372c",
    interaction="#6cc1ab",
    warning="#e0a83c",
    critical="#f2836c",
    lines=("#6cc1ab", "#e0a83c", "#8fb6ea", "#f2836c", "#c9a4dc", "#cfc14a", "#b5a88f"),
)
LIGHT: Final = Theme(
    ground="#f7f2e6",
    raised="#efe7d5",
    text="#2a241b",
    muted="#62573f",
    rule="#cfc2a6",
    interaction="#1c6a5b",
    warning="#7d5200",
    critical="#a52e1b",
    lines=("#1c6a5b", "#9a5b00", "#2a5fa5", "#a52e1b", "#7a4592", "#6b6400", "#62573f"),
)
THEMES: Final = {"dark": DARK, "light": LIGHT}

NEUTRAL: Final = "#8a8272"
"""Of what stands on either ground: hatching, marks of what is below the resolution."""


_SRGB_LINEAR: Final = 0.04045
"""Below it sRGB is linear."""


def template(theme: Theme) -> go.layout.Template:
    """The theme as a plotly template: transparent ground, its text, rules and lines."""
    axis: dict[str, Any] = {
        "gridcolor": theme.rule,
        "linecolor": theme.rule,
        "tickcolor": theme.rule,
        "zerolinecolor": theme.rule,
        "tickfont": {"color": theme.muted},
        "title": {"font": {"color": theme.muted, "size": 12}},
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": SANS, "color": theme.text, "size": 13},
            "title": {"font": {"family": SERIF, "size": 16, "color": theme.text}},
            "colorway": list(theme.lines),
            "hoverlabel": {
                "bgcolor": theme.raised,
                "bordercolor": theme.rule,
                "font": {"color": theme.text, "family": SANS},
                "align": "left",
            },
            "legend": {"font": {"color": theme.text}},
            "xaxis": {**axis, "exponentformat": "none"},
            "yaxis": axis,
            "coloraxis": {"colorbar": {"tickfont": {"color": theme.muted}, "outlinecolor": theme.rule}},
            "annotationdefaults": {"font": {"color": theme.muted, "size": 12}},
            "modebar": {"color": theme.muted, "activecolor": theme.interaction, "bgcolor": "rgba(0,0,0,0)"},
        }
    )


def variables(theme: Theme) -> str:
    """The theme's colours as variables of a style sheet."""
    names = ("ground", "raised", "text", "muted", "rule", "interaction", "warning", "critical")
    return " ".join(f"--{name}: {getattr(theme, name)};" for name in names)


def themed(figure: go.Figure, theme: Theme) -> go.Figure:
    """The figure in a theme, for a notebook; page and report put the template in place in the browser."""
    return go.Figure(figure).update_layout(template=template(theme))


def contrast(first: str, second: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = (part / 12.92 if part <= _SRGB_LINEAR else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
