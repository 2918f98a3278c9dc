"""A forward pass that stops before each block: a thread that runs only while its owner waits for it.

A model's own code calls its blocks from the middle of its forward. To hold that there, without rewriting any model's
code, it runs in a thread of its own; owner and thread take turns, so nothing ever runs at the same time.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")

_current = threading.local()


class _Ended(BaseException):
    """Raised in the thread when nobody wants its result any more; no ``except Exception`` of a model stops it."""


class Stepper(Generic[Result]):
    """One forward pass. ``resume`` and ``close`` are its owner's, ``pause`` is called in the thread."""

    def __init__(self, work: Callable[[], Result]) -> None:
        """Starts nothing yet.

        Args:
            work: Runs in the thread; calls ``pause`` through ``Stepper.running()``.
        """
        self.waits_for: str | None = None
        """What it stopped for; None before the start and after the end."""
        self.is_done = False
        self._work = work
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._is_closed = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)

    @staticmethod
    def running() -> "Stepper[object] | None":
        """The one whose thread this is."""
        found: Stepper[object] | None = getattr(_current, "stepper", None)
        return found

    def resume(self) -> None:
        """Runs until the next ``pause`` or the end.

        Raises:
            BaseException: Whatever the work raised.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def result(self) -> Result:
        """What the work returned; only when ``is_done``."""
        if not self.is_done or self._result is None:
            msg = "the forward pass has no result"
            raise RuntimeError(msg)
        return self._result

    def pause(self, waits_for: str) -> None:
        """In the thread: hands over to the owner until that resumes it."""
        self.waits_for = waits_for
        self._stopped.release()
        self._go.acquire()
        self.waits_for = None
        if self._is_closed:
            raise _Ended

    def close(self) -> None:
        """Ends the thread wherever it stopped."""
        self._is_closed = True
        if self._thread.ident is not None and not self.is_done:
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        _current.stepper = self
        self._go.acquire()
        try:
            if not self._is_closed:
                self._result = self._work()
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by ``resume``
            self._error = error
        self.is_done = True
        self._stopped.release()
