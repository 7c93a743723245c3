"""Benchmarks. Each compares its contenders within one run and prints ratios, for example `make bench-store`."""
