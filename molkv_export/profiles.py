"""Defaults of static profiles."""

CHUNK_LENGTHS = (1, 32)
CONTEXT_LENGTH = 1024  # a static graph attends to its whole context in every step, so it should not be longer than used
