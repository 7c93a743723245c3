"""Measurements of Gemma 4 at full size, with random weights."""
