"""The source checkpoint of a bundle: hashes that identify it, its model in PyTorch, and limits for rounding errors."""
