"""Looking into an ONNX file before ONNX Runtime loads it: which other files would it read, does it hold loops?

ONNX's own package is too large for a device, and of its format (protobuf) only the nesting of messages is needed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from molkv_runtime.errors import BundleError
from molkv_runtime.json_file import read_bytes

# Message -> number of a field -> the message that it holds (onnx.proto, IR version 10).
_NESTED: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Subgraph", 10: "Tensor", 11: "Subgraph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
}
_REFUSED = {
    "Subgraph": "a loop or a branch",
    "Function": "a function of its own",
    "TrainingInfo": "instructions for training",
}
_KEY, _VALUE = 1, 2  # fields of ExternalData
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def check_graph_file(path: Path, data_file: str) -> None:
    """Check that a graph keeps all its weights in one file beside it, and does nothing but compute straight on.

    Args:
        path: The ONNX file.
        data_file: Name of the file with its weights.

    Raises:
        BundleError: It is not ONNX, refers to another file, or holds loops, branches or functions.
    """
    content = memoryview(read_bytes(path, BundleError, "expected an ONNX file"))
    try:
        for message, data in _messages("Model", content):
            if message in _REFUSED:
                raise BundleError(f"{path}: holds {_REFUSED[message]}, which a dense graph has no use for")
            if message == "ExternalData":
                entry = {number: bytes(value) for number, value in _fields(data)}
                if entry.get(_KEY) == b"location" and entry.get(_VALUE) != data_file.encode():
                    location = entry.get(_VALUE, b"").decode(errors="replace")[:100]
                    raise BundleError(f"{path}: keeps weights in {location!r}, expected {data_file!r} beside it")
    except (ValueError, IndexError, RecursionError) as error:
        raise BundleError(f"{path}: is not an ONNX file") from error


def _messages(message: str, data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Give all messages inside a message, outer ones first."""
    yield message, data
    nested = _NESTED.get(message, {})
    for number, value in _fields(data) if nested else ():
        if number in nested:
            yield from _messages(nested[number], value)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Give number and content of the fields that hold bytes; step over those that hold numbers."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise ValueError("a field is longer than its message")
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a field has an unknown kind")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte; give it and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
