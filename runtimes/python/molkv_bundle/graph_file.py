"""Checks of an ONNX file before ONNX Runtime loads it, since some invalid files crash ONNX Runtime.

The onnx package is too large for a device. Few of its checks are needed here, because a dense graph may contain only
the operators of a closed list.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from molkv_bundle.errors import BundleError
from molkv_bundle.files import read_bytes
from molkv_bundle.operators import OPERATORS, OPSETS, AttributeType
from molkv_bundle.protobuf import Field, Schema, UnknownFieldError, decode
from molkv_bundle.safetensors_file import MAX_RANK

# The ONNX fields that a dense graph may have (onnx.proto, IR version 10). Metadata and types are not decoded.
_SCHEMA: Schema = {
    "Model": {
        1: Field("ir_version", "int"),
        2: Field("producer_name"),
        7: Field("graph", "Graph"),
        8: Field("opset_import", "Opset", repeated=True),
        14: Field("metadata_props", repeated=True),
    },
    "Opset": {1: Field("domain"), 2: Field("version", "int")},
    "Graph": {
        1: Field("node", "Node", repeated=True),
        2: Field("name"),
        5: Field("initializer", "Tensor", repeated=True),
        11: Field("input", "Value", repeated=True),
        12: Field("output", "Value", repeated=True),
        13: Field("value_info", repeated=True),
    },
    "Node": {
        1: Field("input", repeated=True),
        2: Field("output", repeated=True),
        3: Field("name"),
        4: Field("op_type"),
        5: Field("attribute", "Attribute", repeated=True),
        7: Field("domain"),
        9: Field("metadata_props", repeated=True),
    },
    "Attribute": {
        1: Field("name"),
        2: Field("f", "float"),
        3: Field("i", "int"),
        4: Field("s"),
        5: Field("t", "Tensor"),
        8: Field("ints", "int", repeated=True),
        20: Field("type", "int"),
    },
    "Tensor": {
        1: Field("dims", "int", repeated=True),
        2: Field("data_type", "int"),
        8: Field("name"),
        9: Field("raw_data"),
        13: Field("external_data", "Entry", repeated=True),
        14: Field("data_location", "int"),
    },
    "Value": {1: Field("name"), 2: Field("type")},
    "Entry": {1: Field("key"), 2: Field("value")},
}
_NAMED_FIELDS = {
    ("Attribute", 6): "a loop or a branch",
    ("Attribute", 11): "a loop or a branch",
    ("Model", 20): "instructions for training",
    ("Model", 25): "a function",
    ("Graph", 15): "a sparse tensor",
}
_ATTRIBUTES: dict[AttributeType, tuple[int, str]] = {  # ONNX's number of the type, and the field with the value
    "float": (1, "f"),
    "int": (2, "i"),
    "string": (3, "s"),
    "tensor": (4, "t"),
    "ints": (7, "ints"),
}
_ITEM_SIZES = {1: 4, 2: 1, 3: 1, 7: 8, 10: 2}  # bytes, by ONNX's number of float32, uint8, int8, int64, float16
_EXTERNAL = 1  # value of data_location for data in another file
_EXTERNAL_KEYS = {"location", "offset", "length"}
_LARGEST_INT = 2**31 - 1  # some operators of ONNX Runtime store dimensions and attributes in 32 bits


class _GraphError(Exception):
    """The graph is not valid, so a driver must not load it. The message does not name the file."""


def check_graph_file(path: Path, data_file: str) -> None:
    """Check that a graph has only the operators of dense graphs, and that its weights are in one file in its folder.

    Args:
        path: The path of the ONNX file.
        data_file: The name of the file with the weights.

    Raises:
        BundleError: The file is not ONNX, contains a part that dense graphs may not have, uses an undefined name, or
            refers to data outside of `data_file`.
    """
    content = memoryview(read_bytes(path, BundleError, "expected an ONNX file"))
    data = path.with_name(data_file)
    try:
        _check_model(decode(_SCHEMA, "Model", content), data_file, data.stat().st_size)
    except UnknownFieldError as error:
        what = _NAMED_FIELDS.get((error.message, error.number), str(error))
        raise BundleError(f"{path}: contains {what}, which is not allowed in a dense graph") from error
    except (ValueError, IndexError, KeyError) as error:
        raise BundleError(f"{path}: is not an ONNX file") from error
    except OSError as error:
        raise BundleError(f"{data}: cannot be read ({error.strerror})") from error
    except _GraphError as error:
        raise BundleError(f"{path}: {error}; export again") from error


def _check_model(model: dict[str, Any], data_file: str, data_size: int) -> None:
    graph = model["graph"]
    opsets = [(_text(entry, "domain"), entry["version"]) for entry in model.get("opset_import", [])]
    if len(dict(opsets)) < len(opsets) or "" not in dict(opsets) or not OPSETS.items() >= set(opsets):
        raise _GraphError(
            f"its operator sets are {str(opsets)[:100]}, expected '' and optionally the others of {dict(OPSETS)}"
        )
    tensors = graph.get("initializer", [])
    for tensor in tensors:
        _check_tensor(tensor, data_file, data_size)
    defined: set[str] = set()
    _define(defined, [_text(value, "name") for value in (*graph.get("input", []), *tensors)])
    for node in graph.get("node", []):
        _check_node(node, data_file, data_size)
        _check_defined(defined, [name for value in node.get("input", []) if (name := _decoded(value))])
        _define(defined, [name for value in node["output"] if (name := _decoded(value))])
    _check_defined(defined, [_text(value, "name") for value in graph.get("output", [])])


def _define(defined: set[str], names: list[str]) -> None:
    for name in names:
        if not name or name in defined:
            raise _GraphError(f"defines {_shown(name)} twice" if name else "defines a value without a name")
        defined.add(name)


def _check_defined(defined: set[str], names: list[str]) -> None:
    for name in names:
        if name not in defined:
            raise _GraphError(f"uses {_shown(name)}, which is not defined before its use")


def _check_node(node: dict[str, Any], data_file: str, data_size: int) -> None:
    kind = _text(node, "domain"), _text(node, "op_type")
    where = f"node {_shown(_text(node, 'name'))}"
    operator = OPERATORS.get(kind)
    if operator is None:
        domain = f" of {_shown(kind[0])}" if kind[0] else ""
        raise _GraphError(f"{where} has the operator {_shown(kind[1])}{domain}, which dense graphs may not have")
    for field, allowed in (("input", operator.inputs), ("output", operator.outputs)):
        found = "".join("x" if len(name) else "-" for name in node.get(field, []))
        if found not in allowed:
            expected = " or ".join(sorted(allowed)) or "none"
            raise _GraphError(
                f"{where} ({kind[1]}) has the {field}s {found[:30] or 'none'}, expected {expected} "
                "(x: has a name, -: empty)"
            )
    attributes = node.get("attribute", [])
    for attribute in attributes:
        name = _text(attribute, "name")
        if name not in operator.attributes or not _is_sound(attribute, operator.attributes[name]):
            raise _GraphError(f"{where} ({kind[1]}) has an attribute {_shown(name)} whose name or value is not allowed")
        if "t" in attribute:
            if "external_data" in attribute["t"]:
                raise _GraphError(f"{where} ({kind[1]}) has a tensor in another file, expected it in the graph")
            _check_tensor(attribute["t"], data_file, data_size)
    if len({_text(attribute, "name") for attribute in attributes}) < len(attributes):
        raise _GraphError(f"{where} ({kind[1]}) has two attributes of the same name")


def _is_sound(attribute: dict[str, Any], wanted: AttributeType) -> bool:
    """Return whether an attribute has one value, of the wanted type, and its integers are from -1 to 2^31 - 1."""
    number, field = _ATTRIBUTES[wanted]
    values = attribute.keys() - {"name", "type"}
    integers = [attribute.get("i", 0), *attribute.get("ints", [])]
    return attribute["type"] == number and values == {field} and all(-1 <= n <= _LARGEST_INT for n in integers)


def _check_tensor(tensor: dict[str, Any], data_file: str, data_size: int) -> None:
    name = _shown(_text(tensor, "name"))
    entries = [(_text(entry, "key"), _text(entry, "value")) for entry in tensor.get("external_data", [])]
    external = dict(entries)
    if external.get("location", data_file) != data_file:
        raise _GraphError(f"has weights in {_shown(external['location'])}, expected {data_file!r} in the same folder")
    dims, kind = tensor.get("dims", []), tensor.get("data_type")
    if kind not in _ITEM_SIZES or len(dims) > MAX_RANK or not all(0 <= dim <= _LARGEST_INT for dim in dims):
        raise _GraphError(
            f"tensor {name} has the data type {kind} and the shape {str(dims)[:100]}, "
            f"expected one of the data types {list(_ITEM_SIZES)} and a shape of at most {MAX_RANK} dimensions"
        )
    size = math.prod(dims) * _ITEM_SIZES[kind]
    if not tensor.get("data_location") and not entries:
        if len(tensor.get("raw_data", b"")) != size:
            raise _GraphError(f"tensor {name} has {len(tensor.get('raw_data', b''))} bytes, expected {size}")
        return
    offset, length = _number(external.get("offset", "")), _number(external.get("length", ""))
    fits = offset >= 0 and length == size and offset + length <= data_size
    whole = len(entries) == len(_EXTERNAL_KEYS) and external.keys() == _EXTERNAL_KEYS
    if not fits or not whole or "raw_data" in tensor or tensor.get("data_location") != _EXTERNAL:
        raise _GraphError(
            f"tensor {name} is at {str(entries)[:200]}, "
            f"expected {size} bytes inside {data_file}, which has {data_size} bytes"
        )


def _number(text: str) -> int:
    """Return the value of a decimal number of at most 18 digits, or -1 for any other text."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else -1


def _text(message: dict[str, Any], field: str) -> str:
    return _decoded(message.get(field, b""))


def _decoded(value: memoryview | bytes) -> str:
    return bytes(value).decode()


def _shown(text: str) -> str:
    return repr(text[:100])
