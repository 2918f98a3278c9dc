"""How the model is to be run after what was tried before. No torch here: the survey goes on without it."""

from msgspec import Struct


class Way(Struct, frozen=True, kw_only=True):
    """What is still allowed."""

    cells: int | None = None
    """Of a batch at most; None: as many as ever."""
    is_on_cpu: bool = False
    steps: tuple[str, ...] = ()
    """What was given up so far, in words."""


class GpuGaveUpError(Exception):
    """The GPU could not go on. A model's thread cannot take up again, so everything is done again in another way."""

    def __init__(self, way: Way) -> None:
        """To be caught by whoever can begin anew.

        Args:
            way: How to go on; its last step says why.
        """
        super().__init__(way.steps[-1])
        self.way = way
