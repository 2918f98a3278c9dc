"""Settings of the whole test run."""

from hypothesis import settings

# No deadline an example: a loaded machine is slow, not wrong. pytest's own time limit stays.
settings.register_profile("archaeologist", deadline=None)
settings.load_profile("archaeologist")
