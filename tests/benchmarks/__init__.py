"""Benchmarks: programs that print figures; no test asserts a time."""
