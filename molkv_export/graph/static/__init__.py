"""The dense graph for compilers of phones: fixed shapes, one sequence, plain ONNX operators, float inputs only.

`build.py` puts the decoder together from modules that CoreML's and NNAPI's compilers take whole (`lint/` has their
rules). T is the number of positions of a call, S the length of the KV cache; activations are [T, d], since NNAPI takes
products with a constant weight in two dimensions only.
"""
