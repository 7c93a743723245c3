"""The dense graph, built with `onnxscript.nn`.

`decoder.py`, `mole.py` and `molkv.py` have classes and parameters with the same names as those in `modeling/`. The
graph is built by hand, not traced from the reference model. So the parity check compares two independent definitions,
and weights can be streamed into the graph by name.
"""
