"""`make bench-speed`: a bundle, compared with a graph without experts, tables in RAM, and other runtimes."""

CONTEXT = 1024  # size of the KV caches in tokens
STEPS = 48  # number of steps in a decode run
