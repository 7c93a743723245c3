"""Trained checkpoints in: one file per format."""
