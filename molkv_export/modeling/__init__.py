"""The reference models in PyTorch, which define the equations.

`reference.py` has the interface of every family's model. `decoder.py` has the decoder that MoLE and MoLKV share: read
it first.
"""

from molkv_export.modeling.mole import MoleForCausalLM
from molkv_export.modeling.molkv import MolkvForCausalLM
from molkv_export.modeling.reference import ExactRecords, Form, ReferenceModel, Rows, Tap, tap_name

__all__ = ["ExactRecords", "Form", "MoleForCausalLM", "MolkvForCausalLM", "ReferenceModel", "Rows", "Tap", "tap_name"]
