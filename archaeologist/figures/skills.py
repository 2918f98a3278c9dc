"""A skill's scores over time, and which blocks move when they change; the sample size stands in the title."""

from typing import Any, Final

import plotly.graph_objects as go

from archaeologist.figures.labels import plain, short
from contracts.artifacts import SkillFinding

MOST: Final = 12
BAR_PIXELS: Final = 22
SUPPORT: Final = {
    "none": "too few to rank",
    "ranking": "a ranking only",
    "exploratory": "exploratory",
    "tested": "tested",
}


def scores(skill: SkillFinding) -> go.Figure:
    """The skill's scores with two standard errors where the sample size is known."""
    figure = go.Figure(
        go.Scatter(
            x=list(skill.checkpoints),
            y=list(skill.scores),
            mode="lines+markers",
            error_y=_errors(skill),
            customdata=[size if size is not None else "unknown" for size in skill.num_samples] or None,
            hovertemplate="step %{x}<br>score %{y:.3g}<br>%{customdata} samples<extra></extra>",
        )
    )
    figure.update_layout(
        height=280,
        margin={"l": 8, "r": 8, "t": 44, "b": 48},
        title={"text": f"{plain(skill.skill)}: {len(skill.checkpoints)} scores", "x": 0},
        xaxis={"title": {"text": "checkpoint (step)"}},
        yaxis={
            "title": {"text": "score"},
            "rangemode": "nonnegative" if all(score >= 0 for score in skill.scores) else "normal",
        },
    )
    return figure


def _errors(skill: SkillFinding) -> dict[str, Any]:
    """Two standard errors of a share; nothing where a score is none or its sample size unknown."""
    sizes = [*skill.num_samples, *(None,) * len(skill.scores)][: len(skill.scores)]
    pairs = list(zip(skill.scores, sizes, strict=True))
    if not any(size for _, size in pairs) or not all(0 <= score <= 1 for score, _ in pairs):
        return {}
    errors = [2 * (score * (1 - score) / size) ** 0.5 if size else 0 for score, size in pairs]
    return {"type": "data", "array": errors, "thickness": 1}


def impact(skill: SkillFinding, *, most: int = MOST) -> go.Figure:
    """Spearman's correlation of the score's changes with each block's drift, the largest first.

    Args:
        skill: What can be said of it; below three intervals there is nothing to draw.
        most: How many blocks.
    """
    shown = [block for block in skill.layers[:most] if block.spearman is not None]
    names = short([block.layer for block in shown])
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=[block.spearman for block in shown],
            y=[names[block.layer] for block in shown],
            text=["" if block.p_adjusted is None else f"p {block.p_adjusted:.2g}" for block in shown],
            textposition="auto",
            customdata=["not tested" if block.p_adjusted is None else f"{block.p_adjusted:.3g}" for block in shown],
            hovertemplate="<b>%{y}</b><br>Spearman %{x:.3f}<br>adjusted p %{customdata}<extra></extra>",
        )
    )
    noun = "interval" if skill.intervals_used == 1 else "intervals"
    figure.update_layout(
        height=max(160, BAR_PIXELS * len(shown) + 110),
        margin={"l": 8, "r": 8, "t": 44, "b": 48},
        title={"text": f"{plain(skill.skill)}: {skill.intervals_used} {noun}, {SUPPORT[skill.support]}", "x": 0},
        xaxis={
            "title": {"text": "Spearman with drift"},
            "range": [-1.05, 1.05],
            "fixedrange": True,
        },
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [names[block.layer] for block in reversed(shown)],
            "fixedrange": True,
            "showgrid": False,
        },
        bargap=0.35,
        meta={"blocks": [block.layer for block in shown], "skill": skill.skill},
    )
    return figure
