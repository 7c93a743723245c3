"""Random changes of a graph, as an attacker makes them who wants the driver to crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

_INTS = [-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 5, 64, 1000, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1]
_FLOATS = [0.0, -1.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan")]
_TEXTS = ["", "none", "tanh", "PER_TENSOR", "NONE", "x" * 1000, "\0"]
_OTHER_ONNX = "Gather Pad Expand Tile Range TopK Resize Conv Loop If Scan Identity Split GatherND ScatterND LSTM Einsum"
_OTHER_MICROSOFT = "MultiHeadAttention QAttention FusedMatMul BeamSearch Gelu"
_OPERATORS = [
    *[("", name) for name in _OTHER_ONNX.split()],
    *[("com.microsoft", name) for name in _OTHER_MICROSOFT.split()],
    ("", ""),
    ("ai.onnx.ml", "TreeEnsemble"),
    ("nowhere", "Max"),
]
_OTHER_ATTRIBUTES = (
    "axis local_window_size softcap rotary_interleaved block_size smooth_softmax scale qk_output rotary_embedding_dim "
    "is_packed_batching noop_with_empty_axes allowzero saturate output_dtype interleaved"
)


class Mutator:
    """A model with methods that change it at random, one change at a time."""

    def __init__(self, model: onnx.ModelProto, seed: int) -> None:
        self._random = random.Random(seed)
        self._model, self._graph = model, model.graph
        self._names = [name for node in model.graph.node for name in (*node.input, *node.output)]
        self._names += [tensor.name for tensor in model.graph.initializer]

    def mutate(self) -> str:
        """Make one change and return its description."""
        changes: list[Callable[[], str]] = [
            *[self._change_inputs] * 5,
            *[self._change_outputs] * 3,
            *[self._change_attribute] * 5,
            *[self._change_operator] * 2,
            *[self._change_order] * 2,
            *[self._change_initializer] * 6,
            *[self._change_interface] * 2,
            *[self._change_value_info] * 2,
            self._change_model,
        ]
        return self._pick(changes)()

    def _pick(self, choices: Any) -> Any:
        return self._random.choice(choices)

    def _node(self) -> onnx.NodeProto:
        """Choose a node. The operator is chosen first, so that nodes of rare operators are chosen too."""
        kind = self._pick(sorted({node.op_type for node in self._graph.node}))
        return self._pick([node for node in self._graph.node if node.op_type == kind])

    def _int(self, now: int = 0) -> int:
        return int(self._pick([*_INTS, now + 1, now - 1, now * 2 % 2**62, now // 2, -now]))

    def _name(self) -> str:
        return str(self._pick([*[self._pick(self._names)] * 3, "", "nothing"]))

    def _change_list(self, names: Any) -> str:
        """Change a list of names in place."""
        before = list(names)
        after = list(names)
        at = self._random.randrange(len(after)) if after else 0
        match self._pick(["empty", "other", "other", "drop", "append", "double", "swap", "clear", "many"]):
            case "empty" if after:
                after[at] = ""
            case "other" if after:
                after[at] = self._name()
            case "drop" if after:
                del after[at]
            case "append":
                after.append(self._name())
            case "double" if after:
                after.insert(at, after[at])
            case "swap" if after:
                other = self._random.randrange(len(after))
                after[at], after[other] = after[other], after[at]
            case "clear":
                after = []
            case _:
                after += [self._name()] * self._pick([1, 20, 300])
        del names[:]
        names.extend(after)
        return f"{str(before)[:300]} -> {str(after)[:300]}"

    def _change_inputs(self) -> str:
        node = self._node()
        return f"inputs of {node.op_type} {node.name}: {self._change_list(node.input)}"

    def _change_outputs(self) -> str:
        node = self._node()
        return f"outputs of {node.op_type} {node.name}: {self._change_list(node.output)}"

    def _change_attribute(self) -> str:
        nodes = [node for node in self._graph.node if node.attribute]
        node = self._pick(nodes)
        at = self._random.randrange(len(node.attribute))
        attribute = node.attribute[at]
        before = str(attribute).replace("\n", " ")[:100]
        match self._pick(["value"] * 6 + ["drop", "type", "rename", "other", "double", "empty"]):
            case "value":
                self._change_value(attribute)
            case "drop":
                del node.attribute[at]
                return f"{node.op_type} {node.name}: without {before}"
            case "type":
                attribute.type = self._pick(list(AttributeProto.AttributeType.values()))
            case "rename":
                attribute.name = self._pick(["", "axis", "to", "start", "end", "scale", "softcap", "smooth_softmax"])
            case "double":
                node.attribute.append(attribute)
            case "empty":
                for field in ("i", "f", "s", "t", "ints"):
                    attribute.ClearField(field)
            case _:
                attribute = node.attribute.add()
                attribute.CopyFrom(self._pick(self._pick(nodes).attribute))
                attribute.name = self._pick([attribute.name, *_OTHER_ATTRIBUTES.split()])
                self._change_value(attribute)
        return f"{node.op_type} {node.name}: {before} -> {str(attribute)[:100]!r}"

    def _change_value(self, attribute: onnx.AttributeProto) -> None:
        match attribute.type:
            case AttributeProto.INT:
                attribute.i = self._int(attribute.i)
            case AttributeProto.FLOAT:
                attribute.f = self._pick(_FLOATS)
            case AttributeProto.STRING:
                attribute.s = self._pick(_TEXTS).encode()
            case AttributeProto.INTS:
                values = list(attribute.ints)
                if values and self._pick([True, True, False]):
                    values[self._random.randrange(len(values))] = self._int()
                else:
                    values = self._pick([[], values[:-1], [*values, self._int()], values * 100, [0] * len(values)])
                del attribute.ints[:]
                attribute.ints.extend(values)
            case AttributeProto.TENSOR:
                self._change_tensor(attribute.t)

    def _change_operator(self) -> str:
        node, other = self._node(), self._node()
        before = node.domain, node.op_type
        node.domain, node.op_type = self._pick([*[(other.domain, other.op_type)] * 20, *_OPERATORS])
        if self._pick([True, False]):
            del node.attribute[:]
            node.attribute.extend(other.attribute)
        return f"{before} {node.name} -> {node.domain, node.op_type}"

    def _change_order(self) -> str:
        nodes = list(self._graph.node)
        at, other = self._random.randrange(len(nodes)), self._random.randrange(len(nodes))
        what = self._pick(["drop", "double", "move", "swap", "reverse", "drop all"])
        match what:
            case "drop":
                del nodes[at]
            case "double":
                nodes.insert(other, nodes[at])
            case "move":
                nodes.insert(other, nodes.pop(at))
            case "swap":
                nodes[at], nodes[other] = nodes[other], nodes[at]
            case "reverse":
                nodes.reverse()
            case _:
                nodes = []
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        return f"nodes: {what} {at} {other}"

    def _change_initializer(self) -> str:
        tensors = self._graph.initializer
        at = self._random.randrange(len(tensors))
        tensor = tensors[at]
        before = f"{tensor.name} {tensor.data_type} {list(tensor.dims)}"
        match self._pick(["content"] * 6 + ["drop", "double", "rename", "input", "sparse"]):
            case "content":
                return f"initializer {before}: {self._change_tensor(tensor)}"
            case "drop":
                del tensors[at]
                return f"without initializer {before}"
            case "double":
                tensors.append(tensor)
                return f"initializer {before} is there twice, {self._change_tensor(tensors[-1])}"
            case "rename":
                tensor.name = self._name()
                return f"initializer {before} is now {tensor.name}"
            case "input":
                tensors.append(tensor)
                tensors[-1].name = self._pick([*self._graph.input, *self._graph.output]).name
                return f"initializer shadows {tensors[-1].name}"
            case _:
                sparse = self._graph.sparse_initializer.add()
                sparse.values.CopyFrom(tensor)
                sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [1], [self._int()]))
                sparse.dims.extend(self._pick([list(tensor.dims), [self._int()]]))
                del tensors[at]
                return f"initializer {before} is sparse"

    def _change_tensor(self, tensor: onnx.TensorProto) -> str:
        before = f"{list(tensor.dims)} {tensor.data_type}"
        what = self._pick(["dims", "rank", "type", "data", "data", "fit", "external", "typed"])
        if what in ("dims", "rank"):
            dims = list(tensor.dims)
            if what == "dims" and dims:
                place = self._random.randrange(len(dims))
                dims[place] = self._int(dims[place])
            else:
                dims = self._pick([[], [0], dims[::-1], [1, *dims], dims[:-1], [*dims, 1], [1] * 100, [2**40, 2**40]])
            del tensor.dims[:]
            tensor.dims.extend(dims)
        elif what == "type":
            tensor.data_type = self._pick([*range(27), -1, 1000])
        elif what == "fit":  # a valid tensor of another shape or content
            dims = [self._pick([0, 1, 2, 3, 8, 32, 64, 127]) for _ in range(self._pick([0, 1, 1, 2, 2, 3, 4]))]
            kind = self._pick([tensor.data_type, tensor.data_type, 1, 2, 3, 6, 7, 9, 10, 11])
            self._replace(tensor, dims, kind)
        elif what == "external":
            for entry in tensor.external_data:
                if entry.key != "location":
                    entry.value = self._pick([str(self._int(int(entry.value))), "", "x", "0x10", " 7", "1e3", "9" * 40])
            if not tensor.external_data or self._pick([True] + [False] * 5):
                tensor.data_location = self._pick([TensorProto.EXTERNAL, TensorProto.DEFAULT])
            if self._pick([True] + [False] * 5):
                del tensor.external_data[self._random.randrange(3) :]
        elif what == "typed":
            field = self._pick(["float_data", "int32_data", "int64_data", "double_data", "uint64_data"])
            getattr(tensor, field).extend([1] * self._pick([1, 5, 1000]))
            if self._pick([True, False]):
                tensor.ClearField("raw_data")
        elif tensor.data_type == TensorProto.INT64 and len(tensor.raw_data) % 8 == 0 and tensor.raw_data:
            values = [*numpy_helper.to_array(tensor).reshape(-1).tolist()]
            place = self._random.randrange(len(values))
            values[place] = self._int(values[place])
            tensor.raw_data = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
            return f"{before} -> {values[:10]}"
        else:
            raw = tensor.raw_data
            tensor.raw_data = self._pick(
                [b"", raw[:-1], raw + b"\0", raw[: len(raw) // 2], bytes(len(raw)), b"\xff" * len(raw), raw * 2]
            )
        return f"{what} {before} -> {list(tensor.dims)} {tensor.data_type}"

    def _replace(self, tensor: onnx.TensorProto, dims: list[int], kind: int) -> None:
        name, size = tensor.name, 1
        for dim in dims:
            size *= dim
        tensor.Clear()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend(dims)
        width = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}.get(kind, 4)
        if kind in (6, 7):
            tensor.raw_data = b"".join(
                (self._int() % 2 ** (8 * width)).to_bytes(width, "little") for _ in range(min(size, 5000))
            )
        else:
            tensor.raw_data = self._random.randbytes(min(size, 2**20) * width)

    def _change_interface(self) -> str:
        infos = self._pick([self._graph.input, self._graph.output])
        at = self._random.randrange(len(infos))
        before = infos[at].name
        what = self._pick(["drop", "double", "rename", "shape", "initializer"])
        match what:
            case "drop":
                del infos[at]
            case "double":
                infos.append(infos[at])
            case "rename":
                infos[at].name = self._name()
            case "shape":
                what += self._change_type(infos[at])
            case _:
                tensor = self._pick(self._graph.initializer)
                infos.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        return f"interface: {what} {before}"

    def _change_type(self, info: onnx.ValueInfoProto) -> str:
        kind = info.type.tensor_type
        dims = kind.shape.dim
        match self._pick(["type", "dim", "name", "less", "more", "none", "sequence"]):
            case "type":
                kind.elem_type = self._pick([*range(27), -1])
            case "dim" if dims:
                self._pick(dims).dim_value = self._int()
            case "name" if dims:
                self._pick(dims).dim_param = self._pick(["batch", "length", "", "max_length", "None"])
            case "less" if dims:
                del dims[-1]
            case "more":
                dims.add().dim_value = self._int()
            case "none":
                kind.ClearField("shape")
            case _:
                info.type.sequence_type.elem_type.tensor_type.elem_type = 1
        return str(info.type).replace("\n", "")[:200]

    def _change_value_info(self) -> str:
        infos = self._graph.value_info
        if not infos or self._pick([True] + [False] * 4):
            infos.add().CopyFrom(self._pick([*self._graph.input, *self._graph.output]))
            infos[-1].name = self._pick(self._names)
            return f"value_info {infos[-1].name}: {self._change_type(infos[-1])}"
        info = self._pick(infos)
        return f"value_info {info.name}: {self._change_type(info)}"

    def _change_model(self) -> str:
        model = self._model
        match self._pick(["ir", "version", "domain", "drop", "double", "annotation", "metadata", "name"]):
            case "ir":
                model.ir_version = self._int(10)
            case "version":
                self._pick(model.opset_import).version = self._pick([self._int(22), *range(1, 30)])
            case "domain":
                self._pick(model.opset_import).domain = self._pick(["", "ai.onnx", "nowhere", "com.microsoft"])
            case "drop":
                del model.opset_import[0]
            case "double":
                model.opset_import.append(model.opset_import[0])
            case "annotation":
                model.graph.quantization_annotation.add().tensor_name = self._name()
            case "metadata":
                model.metadata_props.add(key="x" * self._pick([0, 1, 10000]), value="")
            case _:
                model.graph.name = ""
        return f"model: {model.ir_version} {str(model.opset_import)!r}"


def mutant(content: bytes, seed: int) -> tuple[bytes, list[str]]:
    """Make one to three changes of a graph. Return it and their descriptions."""
    model = onnx.ModelProto.FromString(content)
    mutator = Mutator(model, seed)
    changes = []
    for _ in range(1 + seed % 8 // 6 + seed % 16 // 15):
        try:
            changes.append(mutator.mutate())
        except (ValueError, IndexError) as error:  # nothing is left to change, or protobuf refuses the value
            changes.append(f"({error})")
    return model.SerializeToString(), changes
