"""Cases of damaged, foreign and hostile bundles: changes of a valid bundle, and the kind of the expected error."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from difflib import SequenceMatcher
from itertools import accumulate
from pathlib import Path
from typing import Any

from molkv_bundle import MANIFEST, Bundle

Case = dict[str, Any]
Edit = Callable[[dict[str, Any]], object]
_ZEROS = "0" * 64


def damage_cases(name: str, folder: Path, foreign: str) -> list[Case]:
    """Return the cases of one bundle.

    A change has one of three forms:

    - It replaces `delete` bytes of the file, from `offset` on, with the bytes of `insert` (hexadecimal).
    - It removes the file.
    - It replaces the file with the file of the same name in the bundle `from`.

    Args:
        name: The name of the bundle.
        folder: The folder of the bundle.
        foreign: The name of another bundle with the same shapes, in the same parent folder.
    """
    bundle = Bundle(folder)
    (shard,) = bundle.manifest.experts.shards
    stride, start = bundle.manifest.experts.stride, shard.data_offset
    records = (folder / shard.file).read_bytes()[start:]

    def record(row: int) -> bytes:
        return records[row * stride : (row + 1) * stride]

    def flip(file: str, offset: int) -> Case:
        byte = (folder / file).read_bytes()[offset] ^ 1
        return {"file": file, "offset": offset, "delete": 1, "insert": f"{byte:02x}"}

    def put(row: int, content: bytes) -> Case:
        return {"file": shard.file, "offset": start + row * stride, "delete": stride, "insert": content.hex()}

    def cut(file: str, size: int) -> Case:
        return {"file": file, "offset": size, "delete": (folder / file).stat().st_size - size, "insert": ""}

    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    changes: dict[str, list[Case]] = {
        "two records swapped": [put(3, record(9)), put(9, record(3))],
        "a record over another": [put(3, record(9))],
        "a record of another table": [put(3, _foreign(folder, foreign, 3))],
        "a foreign shard": [{"file": shard.file, "from": foreign}],
        "a foreign graph": [{"file": file, "from": foreign} for file in ("model.onnx", "model.onnx.data")],
        "a foreign manifest": [{"file": MANIFEST, "from": foreign}],
        "a bit of a value": [flip(shard.file, start + 3 * stride + 100)],
        "a bit of the padding or checksum": [flip(shard.file, start + 4 * stride - 2)],
        "a bit of the shard's header": [flip(shard.file, 40)],
        "a page of zeros": [
            {"file": shard.file, "offset": start + 3 * stride, "delete": stride, "insert": "00" * stride}
        ],
        **{f"a bit of {file}": [flip(file, sizes[file] // 2)] for file in (MANIFEST, "model.onnx", "model.onnx.data")},
        **{f"{file} cut short": [cut(file, sizes[file] // 2)] for file in (MANIFEST, "model.onnx", shard.file)},
        **{f"{file} missing": [{"file": file, "remove": True}] for file in (MANIFEST, "model.onnx.data", shard.file)},
    }
    cases = [_case(name, what, patches) for what, patches in changes.items()]
    text = (folder / MANIFEST).read_text()
    for what, edit in _EDITS.items():
        edited = edit(text) if what.startswith("text: ") else _edited(text, edit)
        cases.append(_case(name, what, _splices(text, _sealed(edited))))
    cases.append(_hostile_graph(name, folder, text))
    version = _splices(text, _sealed(_edited(text, lambda m: m["graphs"]["cpu"].update(min_onnxruntime="99.0.0"))))
    return [*cases, {**_case(name, "a graph for a newer ONNX Runtime", version), "error": "provider"}]


def gemma4_damage_cases(name: str, folder: Path) -> list[Case]:
    """Return the cases of changes that only the manifest of a Gemma 4 bundle can have."""
    text = (folder / MANIFEST).read_text()
    return [_case(name, what, _splices(text, _sealed(_edited(text, edit)))) for what, edit in _GEMMA4_EDITS.items()]


def _hostile_graph(name: str, folder: Path, text: str) -> Case:
    """Return a case of a bundle with right hashes, whose graph contains an operator that is not allowed."""
    graph = (folder / "model.onnx").read_bytes()
    operator = b"\x22\x07Softmax"  # op_type of a node, as protobuf encodes it
    offset = graph.index(operator) + 2
    digest = hashlib.sha256(graph.replace(operator, b"\x22\x07Hardmax", 1)).hexdigest()
    edited = _edited(text, lambda m: m["files"]["model.onnx"].update(sha256=digest))
    splice = {"file": "model.onnx", "offset": offset, "delete": 7, "insert": b"Hardmax".hex()}
    return _case(name, "an operator that is not on the list", [splice, *_splices(text, _sealed(edited))])


def _case(bundle: str, what: str, patches: list[Case]) -> Case:
    """Return a case: opening the bundle or continuing the prompt must fail. The prompt has ids of damaged records."""
    return {
        "name": f"{bundle}/damage/{what.removeprefix('text: ')}",
        "kind": "damage",
        "bundle": bundle,
        "patches": patches,
        "prompts": [[1, 3, 9]],
        "error": "bundle",
    }


def _foreign(folder: Path, foreign: str, row: int) -> bytes:
    bundle = Bundle(folder.parent / foreign)
    (shard,), stride = bundle.manifest.experts.shards, bundle.manifest.experts.stride
    return (bundle.path / shard.file).read_bytes()[shard.data_offset :][row * stride : (row + 1) * stride]


def _edited(text: str, edit: Edit) -> str:
    manifest = json.loads(text)
    edit(manifest)
    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"


def _sealed(text: str) -> str:
    """Return the text of a manifest with the right hash in its field `sha256`."""
    start, stop = _digest(text)
    blank = f"{text[:start]}{_ZEROS}{text[stop:]}"
    return blank.replace(_ZEROS, hashlib.sha256(blank.encode()).hexdigest())


def _digest(text: str) -> tuple[int, int]:
    """Return the start and end of a manifest's own hash. Only this `sha256` is indented by a single space."""
    found = re.search('^ "sha256": "([0-9a-f]{64})"', text, re.MULTILINE)
    assert found is not None
    return found.span(1)


def _splices(old: str, new: str) -> list[Case]:
    """Return the changes of lines that turn one manifest into another. The last one in the file comes first.

    So every offset is a position in the old text.
    """
    lines = [text.encode().splitlines(keepends=True) for text in (old, new)]
    starts = list(accumulate(map(len, lines[0]), initial=0))
    changes = []
    for kind, a, b, c, d in SequenceMatcher(None, lines[0], lines[1], autojunk=False).get_opcodes():
        if kind != "equal":
            inserted = b"".join(lines[1][c:d]).hex()
            changes.append({"file": MANIFEST, "offset": starts[a], "delete": starts[b] - starts[a], "insert": inserted})
    return changes[::-1]


def _experts(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["tables"]["experts"]
    return found


def _rename(manifest: dict[str, Any], name: str) -> None:
    old = _experts(manifest)["shards"][0]["file"]
    manifest["files"][name] = manifest["files"].pop(old)
    _experts(manifest)["shards"][0]["file"] = name


_EDITS: dict[str, Callable[[Any], Any]] = {
    "version 3": lambda m: m.update(schema_version=3),
    "version 5": lambda m: m.update(schema_version=5),
    "an unknown field": lambda m: m.update(more=1),
    "an unknown field of the model": lambda m: m["model"].update(more=1),
    "an unknown field of a graph": lambda m: m["graphs"]["cpu"].update(more=1),
    "an unknown field of a graph's file": lambda m: m["graphs"]["cpu"]["files"][0].update(more=1),
    "an unknown field of an input": lambda m: m["graphs"]["cpu"]["files"][0]["inputs"][0].update(more=1),
    "an unknown field of a table": lambda m: _experts(m).update(more=1),
    "an unknown field of a shard": lambda m: _experts(m)["shards"][0].update(more=1),
    "an unknown field of a file": lambda m: m["files"]["model.onnx"].update(more=1),
    "an unknown field of generation": lambda m: m["generation"].update(more=1),
    "an unknown field of provenance": lambda m: m["provenance"].update(more=1),
    "a missing field": lambda m: m.pop("provenance"),
    "a number with a fraction": lambda m: m["model"].update(hidden_size=64.5),
    "an unknown model type": lambda m: m["model"].update(model_type="other"),
    "an unknown profile": lambda m: m["graphs"].update(other=m["graphs"]["cpu"]),
    "an unknown index": lambda m: _experts(m).update(index="ngram"),
    "an unknown dtype": lambda m: _experts(m).update(dtype="int3"),
    "a second table": lambda m: m["tables"].update(more=_experts(m)),
    "another table id": lambda m: _experts(m).update(id="0123456789abcdef"),
    "a table id that is none": lambda m: _experts(m).update(id="xyz"),
    "another stride": lambda m: _experts(m).update(stride=64),
    "another offset of a field": lambda m: _experts(m)["fields"][1].update(offset=0),
    "another data offset": lambda m: _experts(m)["shards"][0].update(data_offset=8192),
    "another first row": lambda m: _experts(m)["shards"][0].update(first_row=1),
    "more rows than records": lambda m: _experts(m).update(rows=62),
    "no shards": lambda m: _experts(m).update(shards=[]),
    "a larger vocabulary": lambda m: m["model"].update(vocab_size=62),
    "another head size": lambda m: m["model"].update(head_dim=32),
    "a name with a separator": lambda m: _rename(m, "../experts.safetensors"),
    "a name with a backslash": lambda m: _rename(m, "..\\experts.safetensors"),
    "a shard that is not listed": lambda m: _experts(m)["shards"][0].update(file="other"),
    "inputs that the model does not call for": lambda m: m["graphs"]["cpu"]["files"][0]["inputs"].pop(),
    "outputs that the model does not call for": lambda m: m["graphs"]["cpu"]["files"][0]["outputs"].pop(),
    "another dtype of an input": lambda m: m["graphs"]["cpu"]["files"][0]["inputs"][0].update(dtype="float16"),
    "a window dtype that the graph does not have": lambda m: m["graphs"]["cpu"].update(window_dtype="int8"),
    "a longer context than the model's": lambda m: m["graphs"]["cpu"].update(context_length=161),
    "a static length in profile cpu": lambda m: m["graphs"]["cpu"]["files"][0].update(length=1),
    "a graph that is not listed": lambda m: m["files"].pop("model.onnx"),
    "a golden file that is not listed": lambda m: m["files"].pop("golden.safetensors"),
    "an end outside the vocabulary": lambda m: m["generation"].update(eos_token_ids=[61]),
    "an impossible default of sampling": lambda m: m["generation"]["sampling"].update(top_p=0),
    "a chat template that is not there": lambda m: m["generation"].update(chat_template="chat_template.jinja"),
    "text: a key that is there twice": lambda text: text.replace(
        '"schema_version": 4,', '"schema_version": 4, "schema_version": 4,'
    ),
    "text: a number that is no number": lambda text: re.sub(r'"stride": \d+', '"stride": NaN', text),
}

_GEMMA4_EDITS: dict[str, Edit] = {
    "an unknown type of a layer": lambda m: m["model"]["layer_types"].__setitem__(3, "linear_attention"),
    "one layer type too few": lambda m: m["model"]["layer_types"].pop(),
    "a layer that shares with no earlier one": lambda m: m["model"]["layer_types"].__setitem__(1, "sliding_attention"),
    "all layers share": lambda m: m["model"].update(num_kv_shared_layers=6),
    "fewer layers share than in the graph": lambda m: m["model"].update(num_kv_shared_layers=2),
    "other layers are sliding": lambda m: m["model"]["layer_types"].__setitem__(0, "full_attention"),
    "no numbers of a per-layer embedding": lambda m: m["model"].update(hidden_size_per_layer_input=0),
    "another size of per-layer embeddings": lambda m: m["model"].update(hidden_size_per_layer_input=32),
    "an odd head size": lambda m: m["model"].update(head_dim=15),
    "a window of nothing": lambda m: m["model"].update(sliding_window=0),
    "a partial rotation of everything and more": lambda m: m["model"].update(partial_rotary_factor=1.5),
    "a negative softcapping": lambda m: m["model"].update(final_logit_softcapping=-1.0),
    "a missing field of the model": lambda m: m["model"].pop("global_head_dim"),
    "a field of another family": lambda m: m["model"].update(num_experts=1),
    "an expert window": lambda m: m["graphs"]["cpu"].update(expert_window=8),
    "no output of a layer that shares": lambda m: m["graphs"]["cpu"]["files"][0]["outputs"].pop(),
}
