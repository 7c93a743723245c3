"""A reader of protobuf, the format of ONNX files. A schema lists the fields that each message may have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_WIRE = {"int": _VARINT, "float": _FIXED32}  # all other kinds have wire type _BYTES


class Field(NamedTuple):
    """A field of a message."""

    name: str
    kind: str = "bytes"  # "int", "float", "bytes", or the name of a message
    repeated: bool = False


Schema = Mapping[str, Mapping[int, Field]]  # name of a message -> number of a field -> field


class UnknownFieldError(ValueError):
    """A message has a field that the schema does not list."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(f"field {number} of {message}")
        self.message, self.number = message, number


def decode(schema: Schema, message: str, data: memoryview) -> dict[str, Any]:
    """Decode a message and all messages inside it. The schema must not be recursive, so the depth is limited.

    Returns:
        The fields of the message by name. A value is an int (signed, 64 bits), a dict (a message inside) or a
        memoryview of bytes. The memoryview of a float has 4 bytes, little-endian. A repeated field is a list of values.

    Raises:
        UnknownFieldError: The message has a field that the schema does not list.
        ValueError, IndexError: The data is not such a message, or a field that is not repeated appears twice. Readers
            of protobuf differ in the value that they use.
    """
    known, found = schema[message], dict[str, Any]()
    for number, wire, content in _fields(data):
        field = known.get(number)
        if field is None:
            raise UnknownFieldError(message, number)
        name, kind, repeated = field
        if wire != _WIRE.get(kind, _BYTES):
            raise ValueError(f"{message}.{name} has the wrong wire type")
        value = decode(schema, kind, content) if kind in schema else content
        if repeated:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise ValueError(f"{message}.{name} appears twice")
        else:
            found[name] = value
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and content of each field."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, wire, value - 2**64 if value >= 2**63 else value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("a field has an unknown wire type")
        if size > end - at:
            raise ValueError("a field is longer than its message")
        yield tag >> 3, wire, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a varint (7 bits in each byte). Return its value as an unsigned 64-bit number, and the position after it."""
    if data[at] < 0x80:  # the fast path: most numbers are small
        return data[at], at + 1
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value % 2**64, at
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
