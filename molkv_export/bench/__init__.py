"""Measure how fast a bundle runs on this machine. Needs only the host driver, neither PyTorch nor a checkpoint."""
