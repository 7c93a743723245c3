"""Benchmark for docs/mobile.md: static profiles on every compiler that runs on this machine."""
