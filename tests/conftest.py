"""Settings of the whole test run."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

# No deadline an example: a loaded machine is slow, not wrong. pytest's own time limit stays.
settings.register_profile("archaeologist", deadline=None)
settings.load_profile("archaeologist")


@pytest.fixture
def gpu() -> "torch.device":
    """A CUDA GPU. Without one the test is skipped, in CI too: no machine of CI has one."""
    import torch  # noqa: PLC0415 - most tests do without it

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU that torch sees; its tests run on a person's machine only")
    return torch.device("cuda:0")
