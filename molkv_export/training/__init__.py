"""Training small lookup-expert models on Python's standard library, a text that is part of every Python."""
