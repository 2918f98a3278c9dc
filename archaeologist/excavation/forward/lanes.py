"""Lanes: the threads that sequences, blocks' statistics and slices of the head are shared out to.

A thread takes a whole task, and torch uses none of its own within it: those wait for each other after each of thousands
of small operations, and beside a busy neighbour (a trainer) every wait takes the time of its turn.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final, Self, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST: Final = 16
"""Each holds buffers, and more of them wait for memory."""


class Lanes:
    """Threads for tasks that know nothing of each other; a context manager."""

    def __init__(self, threads: int, *, passes: int = 1) -> None:
        """Starts nothing yet.

        Args:
            threads: All that may be used.
            passes: Forward passes that run at a time. With fewer than threads, each has several of torch's own.
        """
        self.count = min(threads, MOST)
        self.threads_a_pass = max(1, threads // passes)
        self._before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._pool = ThreadPoolExecutor(self.count, "lane", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the threads; what has not begun is left out."""
        self._pool.shutdown(cancel_futures=True)
        # Each thread has its own number, but threads to come take over the last one that was set.
        torch.set_num_threads(self._before)

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results, in the order of the items, once every task has ended.

        Raises:
            Exception: What the first of those that failed raised.
        """
        tasks = [self._pool.submit(work, item) for item in items]
        wait(tasks)
        return [task.result() for task in tasks]

    def later(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Runs beside what comes next."""
        return self._pool.submit(work, *arguments)
