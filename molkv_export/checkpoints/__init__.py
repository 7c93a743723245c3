"""Trained checkpoints in: one file for each way in which models are published; `families.py` opens any of them."""

from molkv_export.checkpoints.checkpoint import EMBEDDING, LM_HEAD, Checkpoint

__all__ = ["EMBEDDING", "LM_HEAD", "Checkpoint"]
