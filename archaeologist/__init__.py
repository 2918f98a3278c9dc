"""Model Archaeologist: what changed in a language model between two checkpoints."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["analyze", "drift"]

if TYPE_CHECKING:
    from archaeologist.api import analyze, drift


def __getattr__(name: str) -> Any:
    # Lazy, so that a trainer that imports the callback does not pay for the rest.
    if name in __all__:
        from archaeologist import api  # noqa: PLC0415 -- lazy, see above

        return getattr(api, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
