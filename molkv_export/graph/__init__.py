"""The dense graph, built with `onnxscript.nn`.

Each file of `modeling/` has one of the same name here, with the same class and parameter names. Building the graph a
second time instead of tracing it makes the parity check an independent one, and lets weights be streamed in by name.
"""
