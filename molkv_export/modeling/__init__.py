"""The reference models in PyTorch, which define the equations.

`reference.py` has the interface that the models of all families implement. Read `decoder.py` first: it has the decoder
that MoLE and MoLKV share.
"""

from molkv_export.modeling.gemma4 import Gemma4ForCausalLM
from molkv_export.modeling.mole import MoleForCausalLM
from molkv_export.modeling.molkv import MolkvForCausalLM
from molkv_export.modeling.reference import ExactRecords, Form, ReferenceModel, Rows, Tap, tap_name

__all__ = [
    "ExactRecords",
    "Form",
    "Gemma4ForCausalLM",
    "MoleForCausalLM",
    "MolkvForCausalLM",
    "ReferenceModel",
    "Rows",
    "Tap",
    "tap_name",
]
