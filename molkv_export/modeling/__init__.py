"""The reference model in PyTorch: the one place that defines the equations. Read `decoder.py` first."""

from molkv_export.modeling.decoder import LookupExpertForCausalLM
from molkv_export.modeling.experts import Form, Records

__all__ = ["Form", "LookupExpertForCausalLM", "Records"]
