"""Measuring how fast a bundle runs here: needs the driver only, no PyTorch and no checkpoint."""
