"""Benchmarks, for example `make bench-store`. Each benchmark compares several methods in one run, and prints ratios."""
