"""Trained checkpoints in: one file per format."""

from molkv_export.checkpoints.native import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
