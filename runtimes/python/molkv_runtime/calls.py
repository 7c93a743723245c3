"""What a step is for a graph: the calls that take in a part of a prompt, and one token of every sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from molkv_bundle import Floats, Records
from molkv_runtime.dense_graph import Call
from molkv_runtime.experts import Part


class Calls(Protocol):
    """A graph with the state of B sequences: KV cache and experts, in buffers that are allocated once."""

    def parts(self, sequence: int, start: int, length: int, all_logits: bool) -> list[Part]:
        """Cut the positions from `start` on into parts, to be run in this order.

        Only the last one, or with all_logits each position once and in order, keeps logits.
        """

    def prepare(self, part: Part, groups: Iterable[Records]) -> tuple[Call, Floats]:
        """Make the call for a part, whose records (float32) come in groups, and memory for its logits [keep, V]."""

    def finish(self, sequence: int, end: int) -> None:
        """Make what the parts up to position `end` have left the sequence's state; until then it has its old one."""

    def decode(self, positions: Sequence[int], going: Sequence[bool], records: Records) -> Floats:
        """Take in the record (float32) [B] of one more position of every sequence that goes on; give logits [B, V].

        They are in a buffer that the next step overwrites.
        """
