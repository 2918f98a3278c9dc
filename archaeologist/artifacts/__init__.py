"""Artifacts on disk: where each one lies, how it is written whole or not at all, how it is read."""
