"""What can be compared: anything that computes the logits of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from molkv_bundle import Bundle, Floats, RequestError
from molkv_export.parity.graphs import load_graphs, weights_file
from molkv_export.parity.onnx_reference import ReferenceGraph
from molkv_export.parity.phases import Ids, Phase, one_shot_prefill
from molkv_export.parity.reference import SourceModel
from molkv_runtime import Generator, Store, Target, resolve

ONNX_REFERENCE = "onnx-reference"


class Runner(Protocol):
    """A runtime with a model in it."""

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        """Compute the logits of token ids [T] at positions 0 to T-1.

        Args:
            ids: The text.
            last: For how many final positions; 0 is all.

        Returns:
            float32 [last or T, vocab_size].
        """


class SourceRunner:
    """The source model in PyTorch, as it was trained or, with a store, with its records rounded as that store does."""

    def __init__(self, model: SourceModel, store: Store | None = None) -> None:
        self.model, self._store = model, store

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        """Compute in one pass, with no cache and no state."""
        return self.model.logits(ids, self._store, last)


class DriverRunner:
    """A bundle in the host driver, in one of its phases."""

    def __init__(self, generator: Generator, phase: Phase = one_shot_prefill) -> None:
        self._generator, self._phase = generator, phase

    def logits(self, ids: Ids, last: int = 0) -> Floats:
        """Run the driver from an empty state."""
        return self._phase(self._generator, ids)[-last:]


def open_bundle(bundle: Path, target: Target, profile: str = "") -> Bundle:
    """Open a bundle for one of its profiles, by default the one that suits the provider best."""
    profiles = () if target.provider == ONNX_REFERENCE else resolve(target.provider).profiles
    return Bundle(bundle, profiles=profiles, profile=profile)


def load_generator(bundle: Bundle, target: Target) -> Generator:
    """Load a bundle into the host driver.

    Args:
        bundle: The bundle, open.
        target: Where the graph is to run. As a provider there is also "onnx-reference": the dense graph is then
            computed by `onnx.reference.ReferenceEvaluator` in numpy, operator by operator. Slow, but no code of ONNX
            Runtime.
    """
    if target.provider != ONNX_REFERENCE:
        return Generator(bundle, target=target, verify_provider=False)
    if target.options or target.required:
        raise RequestError(f"provider {ONNX_REFERENCE!r} has no options, and nodes run nowhere else")
    return Generator(bundle, graph=ReferenceGraph(load_graphs(bundle), weights_file(bundle).parent))
