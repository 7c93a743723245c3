"""Benchmark of a MoLE with the published 160M-4E shape, in both published forms."""
