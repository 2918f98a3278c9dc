"""Settings of the whole test run, and what all of it shares."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from archaeologist.api import default_cache
from archaeologist.daemon.child import kernels_folder

if TYPE_CHECKING:
    import torch

# No deadline an example: a loaded machine is slow, not wrong. pytest's own time limit stays.
settings.register_profile("archaeologist", deadline=None)
settings.load_profile("archaeologist")


def pytest_configure(config: pytest.Config) -> None:
    """The environment of all workers and of all that they start, before anybody imports numba or torch."""
    assert config.cache is not None
    # A user's cache, kept from run to run.
    os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("caches"))
    os.environ["NUMBA_CACHE_DIR"] = str(kernels_folder(default_cache()))
    # Workers share the cores, and tests' tensors are small: threads of torch would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Who is started in the background by a shell ignores Ctrl-C, and so would every program that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, as their time limits say, and their files with them, so that none runs alone at the end."""
    items.sort(key=_limit_seconds, reverse=True)


def _limit_seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return max(float(marker.args[0]) if marker else 0.0, float(item.config.getini("timeout")))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that runs within a test sets the level of the whole process's log; the next test may read warnings."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the compiled kernels, full: whoever comes first compiles for all."""
    from tests.fixtures.kernels import compiled  # noqa: PLC0415 -- writing checkpoints takes torch, and many tests do not

    return compiled(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def gpu() -> "torch.device":
    """A CUDA GPU. Without one the test is skipped, in CI too: no machine of CI has one."""
    import torch  # noqa: PLC0415 - most tests do without it

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU that torch sees; its tests run on a person's machine only")
    return torch.device("cuda:0")
