"""Compares the driver in JavaScript with the Python driver, in Node."""
