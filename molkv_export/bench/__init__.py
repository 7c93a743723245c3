"""Measure how fast a bundle runs on this machine. This needs only the host driver."""
