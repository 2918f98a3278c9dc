"""Probes: the fixed texts that are run through every checkpoint; the package's own sets lie in ``data/``."""
