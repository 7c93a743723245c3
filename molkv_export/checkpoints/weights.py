"""The tensors of a checkpoint by name, in whichever files they are."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from molkv_bundle import CheckpointError, TensorEntry, TensorFile, decode_json, file_sha256, read_bytes
from molkv_export.checkpoints.files import FileState, file_state, foreign_format, refuse_pointer
from molkv_export.checkpoints.torch_file import TorchFile

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TORCH_INDEX = "pytorch_model.bin.index.json"
_NAMES = (WEIGHTS, INDEX, "pytorch_model.bin", _TORCH_INDEX)
_WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and DistributedDataParallel put before every name

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
        found = find_weights(folder)
        if found is None:
            raise foreign_format(folder) or CheckpointError(
                f"{folder}: holds no weights, expected {' or '.join(_NAMES)}"
            )
        self.path = found
        self.states: dict[Path, FileState | None] = {self.path: file_state(self.path)}
        """The files that determine the tensors, as they were just before they were read."""
        if self.path.name in (INDEX, _TORCH_INDEX):
            places = _read_index(self.path)
            paths = [folder / name for name in sorted(set(places.values()))]
            self.states |= {path: file_state(path) for path in paths}
            opened = {path.name: _open(path) for path in paths}
            _check_index(self.path, places, opened)
        else:
            opened = {self.path.name: _open(self.path)}
        self._opened = list(opened.values())
        prefix = _wrapping([name for file in self._opened for name in file.entries])
        self._files = {
            name.removeprefix(prefix): (file, entry) for file in self._opened for name, entry in file.entries.items()
        }

    @property
    def places(self) -> dict[str, tuple[Path, TensorEntry]]:
        """Where all tensors stand, by name."""
        return {name: (file.path, entry) for name, (file, entry) in self._files.items()}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, without what wrappers of the model have put before every one of them."""
        return list(self._files)

    def path_of(self, name: str) -> Path:
        """Name the file that holds a tensor."""
        return self._files[name][0].path

    def entry(self, name: str) -> TensorEntry:
        """Say where a tensor stands in its file."""
        return self._files[name][1]

    def check_dtype(self, name: str) -> None:
        """Check the dtype of a tensor.

        Raises:
            CheckpointError: It is one that is not read.
        """
        dtype = self.entry(name).dtype
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.path_of(name)}: tensor {name!r} has dtype {dtype}, expected one of {', '.join(sorted(_DTYPES))}"
            )

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
        self.check_dtype(name)

    def read(self, name: str, start: int, stop: int, first: int, width: int) -> torch.Tensor:
        """Read a part of rows start to stop of a tensor: `width` numbers each, from number `first` on.

        Returns:
            [(stop - start) * width], in the dtype that the file has.

        Raises:
            CheckpointError: A value is NaN or infinite, or the file cannot be read.
        """
        file, entry = self._files[name]
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

    def sha256(self, advance: Callable[[int], object]) -> dict[Path, str]:
        """Hash the files. Those with tensors are hashed as they are open, whatever has taken their names since.

        Raises:
            OSError: A file cannot be read.
        """
        opened = {file.path: file for file in self._opened}
        return {
            path: opened[path].sha256(advance) if path in opened else file_sha256(path, advance) for path in self.states
        }

    def close(self) -> None:
        """Close the files."""
        for file in self._opened:
            file.close()


def row_width(shape: tuple[int, ...]) -> int:
    """Count the numbers of one step along the first dimension."""
    return math.prod(shape[1:])


def find_weights(folder: Path) -> Path | None:
    """Return the first file that is there of those that Hugging Face looks for, or None."""
    # A link to nowhere is an error, not a reason to take what comes next.
    return next((folder / name for name in _NAMES if os.path.lexists(folder / name)), None)


def _wrapping(names: list[str]) -> str:
    """Return what wrappers have put before every name."""
    prefix = ""
    while names and (wrapper := next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")):
        prefix += wrapper
    return prefix


def _open(path: Path) -> TensorFile:
    refuse_pointer(path)
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
    refuse_pointer(path)
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
