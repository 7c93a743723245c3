"""`make bench-speed`: our bundle against the same graph without experts, tables in RAM, and other runtimes."""

CONTEXT = 1024  # tokens that the KV caches have room for
STEPS = 48  # of a decode run
