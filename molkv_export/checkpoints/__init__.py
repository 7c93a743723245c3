"""Trained checkpoints in: one file per family."""

from molkv_export.checkpoints.checkpoint import EMBEDDING, LM_HEAD, Checkpoint
from molkv_export.checkpoints.families import open_checkpoint

__all__ = ["EMBEDDING", "LM_HEAD", "Checkpoint", "open_checkpoint"]
