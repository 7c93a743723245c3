"""The dense graph for phones' compilers: fixed shapes, one sequence, plain ONNX operators, float inputs only.

`build.py` builds the decoder from modules that the compilers of CoreML and NNAPI support completely (`lint/` has their
rules). T is the number of positions of a call, and S is the length of the KV cache. Activations are [T, d], since NNAPI
supports a product with a constant weight in two dimensions only.
"""
