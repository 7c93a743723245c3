"""Reading trained checkpoints: one module for each published format. `families.open_checkpoint` opens any of them."""

from molkv_export.checkpoints.checkpoint import EMBEDDING, LM_HEAD, Checkpoint

__all__ = ["EMBEDDING", "LM_HEAD", "Checkpoint"]
