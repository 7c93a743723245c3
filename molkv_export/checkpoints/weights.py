"""The tensors of a checkpoint by name, in whichever files they are."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import msgspec
import torch

from molkv_export.checkpoints.torch_file import TorchFile
from molkv_runtime.errors import CheckpointError
from molkv_runtime.json_file import decode_json, read_bytes
from molkv_runtime.tensor_file import TensorEntry, TensorFile

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TORCH_INDEX = "pytorch_model.bin.index.json"
_NAMES = (WEIGHTS, INDEX, "pytorch_model.bin", _TORCH_INDEX)
_OTHER_PICKLES = ("model.bin", "model.pt", "model.pth", "checkpoint.pt")

_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class _Index(msgspec.Struct):
    """Hugging Face's index of a checkpoint in several files; its `metadata` says nothing that the files do not."""

    weight_map: dict[str, str]


class Weights:
    """Tensors that are read by rows when they are needed; opening reads headers only."""

    def __init__(self, folder: Path) -> None:
        """Open the weights that a folder holds: the first that there is of those that Hugging Face looks for.

        Raises:
            CheckpointError: There are none, they are damaged or unsafe, or an index does not fit its files.
        """
        # A link to nowhere is an error, not a reason to take what comes next.
        found = [folder / name for name in _NAMES if os.path.lexists(folder / name)]
        if not found:
            raise _no_weights(folder)
        self.path = found[0]
        self.files = [self.path]
        """The files that determine the tensors."""
        if self.path.name in (INDEX, _TORCH_INDEX):
            places = _read_index(self.path)
            opened = {name: _open(folder / name) for name in sorted(set(places.values()))}
            self.files += [file.path for file in opened.values()]
            _check_index(self.path, places, opened)
        else:
            opened = {self.path.name: _open(self.path)}
        self._opened = list(opened.values())
        self._files = {name: file for file in self._opened for name in file.entries}

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def path_of(self, name: str) -> Path:
        """Name the file that holds a tensor."""
        return self._files[name].path

    def entry(self, name: str) -> TensorEntry:
        """Say where a tensor stands in its file."""
        return self._files[name].entries[name]

    def check(self, name: str, shape: tuple[int, ...], why: str) -> None:
        """Check shape and dtype of a tensor; `why` says who expects the shape.

        Raises:
            CheckpointError: They are others.
        """
        path, entry = self.path_of(name), self.entry(name)
        if entry.shape != shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(entry.shape)}, expected {list(shape)} by {why}"
            )
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name!r} has dtype {entry.dtype}, expected one of {', '.join(_DTYPES)}"
            )

    def read(self, name: str, start: int, stop: int, first: int, width: int) -> torch.Tensor:
        """Read a part of rows start to stop of a tensor: `width` numbers each, from number `first` on.

        Returns:
            [(stop - start) * width], in the dtype that the file has.

        Raises:
            CheckpointError: A value is NaN or infinite, or the file cannot be read.
        """
        file, entry = self._files[name], self.entry(name)
        dtype = _DTYPES[entry.dtype]
        size = width * dtype.itemsize
        out = torch.empty((stop - start) * width, dtype=dtype)
        buffer = out.view(torch.uint8).numpy().data
        offset = entry.start + start * entry.row_bytes + first * dtype.itemsize
        if size == entry.row_bytes:
            file.read_into([buffer] if buffer else [], offset)
        else:
            for row in range(stop - start):
                file.read_into([buffer[row * size : (row + 1) * size]], offset + row * entry.row_bytes)
        # Smallest and largest number tell it, NaN included, and need no copy.
        if not torch.isfinite(torch.stack(torch.aminmax(out))).all():
            raise CheckpointError(
                f"{file.path}: tensor {name!r} holds NaN or infinite values; this model cannot be exported"
            )
        return out

    def close(self) -> None:
        """Close the files."""
        for file in self._opened:
            file.close()


def row_width(shape: tuple[int, ...]) -> int:
    """Count the numbers of one step along the first dimension."""
    return math.prod(shape[1:])


def _no_weights(folder: Path) -> CheckpointError:
    for name in _OTHER_PICKLES:
        if (folder / name).exists():
            return CheckpointError(
                f"{folder / name}: is a pickle, which can run code when it is opened; "
                f"convert it to {WEIGHTS} with safetensors.torch.save_file"
            )
    return CheckpointError(f"{folder}: holds no weights, expected {' or '.join(_NAMES)}")


def _open(path: Path) -> TensorFile:
    if path.suffix == ".bin":
        return TorchFile(path)
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            start = file.read(9)
        # A safetensors file opens with a length, which can be any bytes, and a brace; pickles do not.
        if start[8:] != b"{" and start.startswith((b"PK", b"\x80")):
            raise CheckpointError(
                f"{path}: is a pickle renamed to .safetensors, which can run code when it is opened; "
                "write it with safetensors.torch.save_file"
            )
    return TensorFile(path, CheckpointError)


def _read_index(path: Path) -> dict[str, str]:
    places = decode_json(
        read_bytes(path, CheckpointError, "expected an index of weight files"), _Index, path, CheckpointError
    ).weight_map
    suffix = ".bin" if path.name == _TORCH_INDEX else ".safetensors"
    for tensor, name in places.items():
        if not _FILE_NAME.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{path}: weight_map says that {tensor!r} is in {name[:80]!r}, expected a file {suffix} in the same "
                "folder, named with letters, digits, '.', '_' and '-'"
            )
    if not places:
        raise CheckpointError(f"{path}: weight_map is empty, expected the name of a file for every tensor")
    return places


def _check_index(path: Path, places: dict[str, str], files: dict[str, TensorFile]) -> None:
    for tensor, name in places.items():
        if tensor not in files[name].entries:
            raise CheckpointError(f"{path}: weight_map says that {tensor!r} is in {name}, which does not hold it")
    for name, file in files.items():
        for tensor in file.entries:
            if places.get(tensor) != name:
                said = places.get(tensor, "no file")
                raise CheckpointError(f"{file.path}: holds tensor {tensor!r}, which {path.name} says is in {said}")
