"""Checkpoints on disk: which tensor lies in which bytes, what it is called, how its bytes are read and kept."""
