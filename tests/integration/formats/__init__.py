"""Checkpoints of every format, made with the library that its users use, against direct computations."""
