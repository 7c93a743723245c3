"""Gemma 4 text models: reference, bundles, faults and bad input. The oracle is the model in transformers."""
