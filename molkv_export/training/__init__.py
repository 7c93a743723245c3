"""Training small lookup-expert models on Python's standard library, a text that every Python installation has."""
