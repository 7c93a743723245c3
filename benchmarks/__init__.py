"""Benchmarks: each prints ratios taken side by side in one run. `make bench-store`."""
