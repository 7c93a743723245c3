"""The reference models in PyTorch: the one place that defines the equations.

`reference.py` says what every family's model offers; `decoder.py` is the decoder of MoLE and MoLKV, to be read first.
"""

from molkv_export.modeling.mole import MoleForCausalLM
from molkv_export.modeling.molkv import MolkvForCausalLM
from molkv_export.modeling.reference import ExactRecords, Form, ReferenceModel, Rows, Tap, tap_name

__all__ = ["ExactRecords", "Form", "MoleForCausalLM", "MolkvForCausalLM", "ReferenceModel", "Rows", "Tap", "tap_name"]
