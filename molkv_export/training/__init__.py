"""Training small lookup-expert models on text that every machine has: Python's own standard library."""
