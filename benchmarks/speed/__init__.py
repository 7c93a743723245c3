"""`make bench-speed`: compare a bundle with a graph without experts, with tables in RAM, and with other runtimes."""

CONTEXT = 1024  # size of the KV caches in tokens
STEPS = 48  # number of steps in a decode run
WARM_UP = 64  # length of the order that a process runs before each measured one; see `process.py`
