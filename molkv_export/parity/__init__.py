"""Parity: compare a bundle with the model that it was made from."""
