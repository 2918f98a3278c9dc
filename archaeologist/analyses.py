"""The optional analyses by name: what a request, the settings, a command or a caller may switch on.

Everything else is computed in any case. What each one is: docs/statistics.md, "Options".
"""

from collections.abc import Iterable
from typing import Final, get_args

from archaeologist.errors import AnalysisUnknown
from contracts.messages import Analysis

ANALYSES: Final[tuple[Analysis, ...]] = get_args(Analysis)


def known_analyses(names: str | Iterable[str]) -> tuple[Analysis, ...]:
    """The analyses, each once, in the order that job keys are made of. A text alone is one name.

    Raises:
        AnalysisUnknown: A name is none of them.
    """
    wanted = {names} if isinstance(names, str) else set(names)
    if unknown := sorted(wanted.difference(ANALYSES)):
        msg = f"analysis {unknown[0][:64]!r} is not known; use any of {', '.join(ANALYSES)}"
        raise AnalysisUnknown(msg)
    return tuple(analysis for analysis in sorted(ANALYSES) if analysis in wanted)
