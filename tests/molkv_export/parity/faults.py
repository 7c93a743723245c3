"""Faults in a bundle of stdlib-mini or in the driver, and the place where `validate --bisect` must find each one.

`python -m tests.molkv_export.parity.faults` prints the table in docs/faults.md.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from molkv_export import Report, export, validate
from molkv_export.parity.bisect import TapError
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.validate import ROUNDED
from molkv_runtime import selftest
from tests.models import STDLIB_MINI
from tests.molkv_export.parity import breaking as b

# This text is as long as the context of stdlib-mini, so it exercises every part of the model.
TEXT = STDLIB_MINI / "tokenizer.json"
SCOPE = Scope(sequences=1, continuations=1, new_tokens=16)


class Fault(NamedTuple):
    """A fault that is introduced on purpose."""

    what: str
    layer: int | None  # layer with the fault; None: after the last layer
    branch: str
    apply: b.Apply


class Outcome(NamedTuple):
    """The checks that found a fault."""

    report: Report
    found: TapError | None  # the first wrong value
    selftest_failed: bool

    @property
    def caught_by(self) -> list[str]:
        """Short names of the failed checks."""
        exact = [c for c in self.report.comparisons if c.reference == ROUNDED]
        caught = [f"max abs {c.metrics.max_abs:.0e}, {c.phase}" for c in exact if c.failure][:1]
        caught += ["weights"] if self.report.weights and self.report.weights.failure else []
        caught += ["records"] if self.report.records and self.report.records.failure else []
        return caught + (["self-test"] if self.selftest_failed else [])


def examine(fault: Fault, sound: Path, folder: Path, scope: Scope = SCOPE) -> Outcome:
    """Break a copy of a correct bundle and run all checks on it."""
    bundle = shutil.copytree(sound, folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        fault.apply(bundle, patch)
        report = validate(bundle, STDLIB_MINI, text=TEXT, scope=scope, with_bisection=True)
        failed = bool(selftest(bundle).failures)
    assert report.bisection is not None
    firsts = [phase.first for phase in report.bisection.phases]
    return Outcome(report, next((first for first in firsts if first), None), failed)


_QUERY, _KEY = slice(0, 128), slice(128, 192)  # columns of qkv_proj

FAULTS = [
    # weights
    Fault(
        "weights: input norm of layer 0 x 1.01",
        0,
        "input_norm",
        b.weight("layers.0.input_layernorm.weight", lambda w: w * 1.01),
    ),
    Fault(
        "weights: one number of the input norm of layer 2 + 0.01",
        2,
        "input_norm",
        b.weight("layers.2.input_layernorm.weight", b.one((7,), 0.01)),
    ),
    Fault(
        "weights: queries of layer 1 x 1.01",
        1,
        "attention",
        b.weight("layers.1.self_attn.qkv_proj.weight", b.columns(_QUERY, 1.01)),
    ),
    Fault(
        "weights: keys of layer 3 zero",
        3,
        "attention",
        b.weight("layers.3.self_attn.qkv_proj.weight", b.columns(_KEY, 0.0)),
    ),
    Fault(
        "weights: output projection of layer 2 transposed",
        2,
        "attention",
        b.weight("layers.2.self_attn.o_proj.weight", np.transpose),
    ),
    Fault(
        "weights: post-attention norm of layer 2 x 1.01",
        2,
        "post_attention_norm",
        b.weight("layers.2.post_attention_layernorm.weight", lambda w: w * 1.01),
    ),
    Fault(
        "weights: gate and up of layer 1 swapped",
        1,
        "feed_forward",
        b.swap("layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"),
    ),
    Fault(
        "weights: one number of down of layer 3 + 0.05",
        3,
        "feed_forward",
        b.weight("layers.3.mlp.down_proj.weight", b.one((5, 9), 0.05)),
    ),
    Fault(
        "weights: down of layers 1 and 2 swapped",
        1,
        "feed_forward",
        b.swap("layers.1.mlp.down_proj.weight", "layers.2.mlp.down_proj.weight"),
    ),
    Fault(
        "weights: expert queries of layer 0 negated",
        0,
        "expert_scores",
        b.weight("layers.0.expert_mixer.query_proj.weight", np.negative),
    ),
    Fault(
        "weights: expert query norm of layer 3 x 1.01",
        3,
        "expert_scores",
        b.weight("layers.3.expert_mixer.query_norm.weight", lambda w: w * 1.01),
    ),
    Fault("weights: final norm x 1.01", None, "norm", b.weight("norm.weight", lambda w: w * 1.01)),
    Fault(
        "weights: LM head, one token x 1.1", None, "logits", b.weight("lm_head.weight", b.columns(slice(300, 301), 1.1))
    ),
    # dtype
    Fault(
        "dtype: up of layer 2 rounded to float16",
        2,
        "feed_forward",
        b.weight("layers.2.mlp.up_proj.weight", b.rounded_to("float16")),
    ),
    Fault(
        "dtype: output projection of layer 1 rounded to bfloat16",
        1,
        "attention",
        b.weight("layers.1.self_attn.o_proj.weight", b.rounded_to("bfloat16")),
    ),
    Fault("dtype: stored keys of layer 3 rounded to 1/64", 3, "expert_scores", b.records(b.coarse_keys)),
    # eps
    Fault(
        "eps: input norm of layer 0, 1e-6 -> 1e-5",
        0,
        "input_norm",
        b.attribute(0, "input_layernorm", "SimplifiedLayerNormalization", epsilon=1e-5),
    ),
    Fault(
        "eps: post-attention norm of layer 3, 1e-6 -> 1e-2",
        3,
        "post_attention_norm",
        b.attribute(3, "post_attention_layernorm", "SkipSimplifiedLayerNormalization", epsilon=1e-2),
    ),
    Fault(
        "eps: expert query norm of layer 1, 1e-6 -> 1e-3",
        1,
        "expert_scores",
        b.attribute(1, "expert_mixer/query_norm", "SimplifiedLayerNormalization", epsilon=1e-3),
    ),
    Fault("eps: final norm, 1e-6 -> 1e-2", None, "norm", b.graph(b.final_eps)),
    # scale
    Fault("scale: expert scores of layer 2 by 1/dk, not its root", 2, "expert_scores", b.graph(b.square_scale)),
    Fault(
        "scale: attention of layer 1 by 0.17, not 0.177",
        1,
        "attention",
        b.attribute(1, "self_attn", "GroupQueryAttention", scale=0.17),
    ),
    # masks
    Fault("masks: expert mask of layer 1 ignored by the graph", 1, "expert_scores", b.graph(b.ignore_mask)),
    Fault("masks: prefill sees experts of the future", 0, "expert_scores", b.see_the_future),
    Fault("masks: decode sees empty slots", 0, "expert_scores", b.forget_mask),
    Fault(
        "masks: attention of layer 3 sees 16 tokens",
        3,
        "attention",
        b.attribute(3, "self_attn", "GroupQueryAttention", local_window_size=16),
    ),
    # positions
    Fault(
        "positions: attention of layer 2 not rotated",
        2,
        "attention",
        b.attribute(2, "self_attn", "GroupQueryAttention", do_rotary=0),
    ),
    Fault("positions: sines of attention negated", 0, "attention", b.weight("rotary_sin.32", np.negative)),
    Fault("positions: sines of experts negated", 0, "expert_scores", b.weight("rotary_sin.32.scaled", np.negative)),
    Fault(
        "positions: tables of the graph one position off",
        0,
        "expert_scores",
        b.graph(b.shift_tables),
    ),
    Fault("positions: host does not rotate keys", 0, "expert_scores", b.keys_not_rotated),
    Fault("positions: host rotates keys one position too far", 0, "expert_scores", b.rotated_too_far),
    Fault("positions: driver is told rope_theta 9000", 0, "expert_scores", b.told(rope_theta=9000.0)),
    Fault("positions: driver is told expert_rope false", 0, "expert_scores", b.told(expert_rope=False)),
    # window
    Fault("window: driver is told 31, not 32", 0, "expert_scores", b.told(expert_window=31)),
    Fault("window: driver is told 33, not 32", 0, "expert_scores", b.told(expert_window=33)),
    Fault("window: decode overwrites the slot beside the oldest", 0, "expert_scores", b.wrong_slot),
    Fault("window: a prompt leaves nothing in the ring", 0, "expert_scores", b.values_not_entered),
    # rows
    Fault("rows: values of layer 3 negated", 3, "experts", b.scale_rows("value", 3, -1.0)),
    Fault("rows: values of layer 1 x 1.01", 1, "experts", b.scale_rows("value", 1, 1.01)),
    Fault("rows: keys of layer 0 zero", 0, "expert_scores", b.scale_rows("key", 0, 0.0)),
    Fault("rows: values of layers 0 and 1 swapped", 0, "experts", b.records(b.swap_layers)),
    Fault("rows: records of the id before", 0, "residual", b.records(b.shift_ids)),
    Fault("rows: embeddings x 1.01", 0, "residual", b.records(b.scale_embeddings)),
    Fault("rows: embeddings of 256 ids x 1.01", 0, "residual", b.records(b.scale_some_embeddings)),
    # order of experts
    Fault("order: values of experts 0 and 1 of layer 1 swapped", 1, "experts", b.swap_experts("value", 1)),
    Fault("order: keys of experts 0 and 1 of layer 2 swapped", 2, "experts", b.swap_experts("key", 2)),
    Fault("order: experts of layer 1 left out of the sum", 2, "residual", b.graph(b.double_feed_forward)),
]


def main() -> None:
    """Print the table, with a row for each fault."""
    print("| fault | caught by | named |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        sound = Path(name) / "sound"
        export(STDLIB_MINI, sound)
        for fault in FAULTS:
            with tempfile.TemporaryDirectory() as folder:
                outcome = examine(fault, sound, Path(folder))
            right = outcome.found is not None and (outcome.found.layer, outcome.found.branch) == fault[1:3]
            named = f"{outcome.found.name}, {outcome.found.error:.0e}" if outcome.found else "nothing"
            print(f"| {fault.what} | {'; '.join(outcome.caught_by)} | {named}{'' if right else ' WRONG'} |", flush=True)


if __name__ == "__main__":
    main()
