"""Comparisons of a driver in another language with the Python driver."""

from benchmarks.drivers.comparison import Contender, compare

__all__ = ["Contender", "compare"]
