"""A pytorch_model.bin that could run code, or that PyTorch did not write as it is, is refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from molkv_bundle import CheckpointError
from tests.faults.refusal import refused
from tests.molkv_export.checkpoints.published import Tensors

EXPERT = "model.layers.1.experts.2.up_proj.weight"


def _tensors(folder: Path) -> Tensors:
    return load((folder / "model.safetensors").read_bytes())


class _Harmful:
    """An object whose unpickling runs code: it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._path,)


def _as_torch(folder: Path, content: object) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_a_pickle_with_code_is_refused_and_does_not_run(folder: Path) -> None:
    touched = folder / "touched"
    _as_torch(folder, {**_tensors(folder), "extra": _Harmful(touched)})
    refused(folder, CheckpointError, "which could run code, expected only plain tensors; save only the state_dict")
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds an object of type list, expected a dict with at least one tensor by name"),
        ({}, "holds an object of type dict, expected a dict with at least one tensor by name"),
        ({"step": 3}, "'step' is of type int, expected a plain tensor"),
        ({EXPERT: torch.ones(64, 48).T}, f"tensor '{EXPERT}' is a transposed, strided or negated view"),
        (
            {EXPERT: torch.ones(4, 4).to_sparse()},
            "its pickle loads 'torch._utils _rebuild_sparse_tensor', which could run code",
        ),
        ({"model": {EXPERT: torch.ones(2)}}, "'model' is of type dict, expected a plain tensor"),
    ],
)
def test_a_torch_file_of_something_else_is_refused(content: object, message: str, folder: Path) -> None:
    _as_torch(folder, content)
    refused(folder, CheckpointError, message)


def test_other_dtypes_in_a_torch_file_are_refused(folder: Path) -> None:
    _as_torch(folder, {name: tensor.double() for name, tensor in _tensors(folder).items()})
    refused(folder, CheckpointError, "has dtype torch.float64, expected one of BF16, F16, F32")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_torch_file_is_refused(keep: float, folder: Path) -> None:
    path = _as_torch(folder, _tensors(folder))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refused(folder, CheckpointError, "pytorch_model.bin: is truncated, or is not in the format that torch.save has")


def test_the_format_before_pytorch_1_6_is_refused(folder: Path) -> None:
    tensors = _tensors(folder)
    path = _as_torch(folder, {})
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    refused(folder, CheckpointError, "is not in the format that torch.save has since PyTorch 1.6")


def test_a_compressed_torch_file_is_refused(folder: Path) -> None:
    path = _as_torch(folder, _tensors(folder))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    refused(folder, CheckpointError, "is compressed or encrypted; write it again with torch.save")


def _rewrite_archive(path: Path, edit: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Write the parts of an archive as zipfile does, without PyTorch's alignment."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in edit(parts).items():
            archive.writestr(name, part)


def _with_part(kind: str, content: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda parts: {name: content if name.endswith(kind) else part for name, part in parts.items()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda parts: parts, "are not where torch.save puts them; write it again"),
        (lambda parts: dict(reversed(parts.items())), "its parts are not in the order in which torch.save"),
        (_with_part("/data/3", b"1234"), "are not where torch.save puts them; write it again"),
        (_with_part("byteorder", b"big"), "byteorder' holds b'big'"),
        (_with_part(".storage_alignment", b"0"), ".storage_alignment' holds b'0'"),
        (_with_part("byteorder", bytes(100)), "byteorder' holds b''"),
        (_with_part("data.pkl", pickle.dumps({"a": bytearray(9)}, 2)), "its pickle loads '"),
    ],
)
def test_an_archive_that_was_tampered_with_is_refused(
    edit: Callable[[dict[str, bytes]], dict[str, bytes]], message: str, folder: Path
) -> None:
    _rewrite_archive(_as_torch(folder, _tensors(folder)), edit)
    refused(folder, CheckpointError, message)


def test_a_negated_view_is_refused(folder: Path) -> None:
    tensors = _tensors(folder)
    _as_torch(folder, {**tensors, EXPERT: torch._neg_view(tensors[EXPERT])})
    refused(folder, CheckpointError, "is a transposed, strided or negated view; save its .contiguous()")


def test_a_torch_file_without_its_pickle_is_refused(folder: Path) -> None:
    path = _as_torch(folder, {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pytorch_model/data.pkl", pickle.dumps({"a": 1})[:-3])
    refused(folder, CheckpointError, "pytorch_model.bin: ")
