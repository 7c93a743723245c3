"""Benchmarks of an expert store of realistic size: writing, reading, and the whole driver under a memory limit."""
