"""Malformed inputs for everything that reads what others wrote; ``python -m tests.fuzz`` runs many of them."""
