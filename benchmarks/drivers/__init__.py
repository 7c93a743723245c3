"""Comparisons of a driver in another language with the Python driver."""

from benchmarks.drivers.comparison import LIBRARY, Contender, compare

__all__ = ["LIBRARY", "Contender", "compare"]
