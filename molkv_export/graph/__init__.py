"""The dense graph, built with `onnxscript.nn`.

`decoder.py`, `mole.py` and `molkv.py` have the classes and parameter names of those in `modeling/`. Building the graph
a second time instead of tracing it makes the parity check an independent one, and lets weights be streamed in by name.
"""
