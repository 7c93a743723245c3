"""The tensors of a checkpoint by name, from one file or several."""

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
_WRAPPERS = ("_orig_mod.", "module.")  # prefixes that torch.compile and DistributedDataParallel add to every name

_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class _Index(msgspec.Struct):
    """Hugging Face's index of a checkpoint that has several files. Its other field, `metadata`, is not needed."""

    weight_map: dict[str, str]


class Weights:
    """The tensors of a checkpoint. Opening reads headers only; rows are read on demand."""

    def __init__(self, folder: Path, open_one: Callable[[Path], TensorFile]) -> None:
        """Open the first existing file of weights in a folder; names and order of the files are Hugging Face's.

        Args:
            folder: The folder.
            open_one: A function that opens a file with tensors, such as `open_file`.

        Raises:
            CheckpointError: The weights are missing, damaged or unsafe, or an index does not fit its files.
        """
        found = find_weights(folder)
        if found is None:
            raise foreign_format(folder) or CheckpointError(
                f"{folder}: holds no weights, expected {' or '.join(_NAMES)}"
            )
        self.path = found
        self.states: dict[Path, FileState | None] = {self.path: file_state(self.path)}
        """The files that determine the tensors, each with its state just before it was read."""
        if self.path.name in (INDEX, _TORCH_INDEX):
            places = _read_index(self.path)
            paths = [folder / name for name in sorted(set(places.values()))]
            self.states |= {path: file_state(path) for path in paths}
            opened = {path.name: open_one(path) for path in paths}
            _check_index(self.path, places, opened)
        else:
            opened = {self.path.name: open_one(self.path)}
        self._opened = list(opened.values())
        prefix = _wrapping([name for file in self._opened for name in file.entries])
        self._files = {
            name.removeprefix(prefix): (file, entry) for file in self._opened for name, entry in file.entries.items()
        }

    @property
    def places(self) -> dict[str, tuple[Path, TensorEntry]]:
        """File and entry (dtype, shape and place) of every tensor, by name."""
        return {name: (file.path, entry) for name, (file, entry) in self._files.items()}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, without the prefix that torch.compile or DistributedDataParallel adds to every name."""
        return list(self._files)

    def path_of(self, name: str) -> Path:
        """Return the path of the file that holds a tensor."""
        return self._files[name][0].path

    def entry(self, name: str) -> TensorEntry:
        """Return the dtype and shape of a tensor, and its place in the file."""
        return self._files[name][1]

    def check_dtype(self, name: str) -> None:
        """Check the dtype of a tensor.

        Raises:
            CheckpointError: The dtype is not supported.
        """
        dtype = self.entry(name).dtype
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.path_of(name)}: tensor {name!r} has dtype {dtype}, expected one of {', '.join(sorted(_DTYPES))}"
            )

    def check(self, name: str, shape: tuple[int, ...], why: str) -> None:
        """Check the shape and dtype of a tensor; in the message, `why` names the source of the expected shape.

        Raises:
            CheckpointError: The shape is not the expected one, or the dtype is not supported.
        """
        path, entry = self.path_of(name), self.entry(name)
        if entry.shape != shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(entry.shape)}, expected {list(shape)} by {why}"
            )
        self.check_dtype(name)

    def read(self, name: str, start: int, stop: int, first: int, width: int) -> torch.Tensor:
        """Read rows start to stop of a tensor; from each row, read only `width` numbers from index `first` on.

        Returns:
            [(stop - start) * width], in the file's dtype.

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
        # If any number is NaN or infinite, the smallest or the largest number is NaN or infinite. Finding these two
        # numbers needs no copy of the tensor.
        if not torch.isfinite(torch.stack(torch.aminmax(out))).all():
            raise CheckpointError(
                f"{file.path}: tensor {name!r} holds NaN or infinite values, expected finite values; this model "
                "cannot be exported"
            )
        return out

    def sha256(self, advance: Callable[[int], object]) -> dict[Path, str]:
        """Return the SHA-256 of each file; `advance` is called with the size in bytes of each hashed piece.

        Files with tensors are hashed through their open descriptors, even if other files have taken their names.

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
    """Return the number of values in one row; a row is one index of the first dimension."""
    return math.prod(shape[1:])


def find_weights(folder: Path) -> Path | None:
    """Return the first existing file of weights in a folder, in Hugging Face's order of names, or None."""
    # A broken link counts as existing. So opening it raises an error, and no other file is read in its place.
    return next((folder / name for name in _NAMES if os.path.lexists(folder / name)), None)


def _wrapping(names: list[str]) -> str:
    """Return the prefix that wrappers of the model have added to all names, or ""."""
    prefix = ""
    while names and (wrapper := next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")):
        prefix += wrapper
    return prefix


def _open_safetensors(path: Path) -> TensorFile:
    return TensorFile(path, CheckpointError)


def open_file(path: Path, open_safetensors: Callable[[Path], TensorFile] = _open_safetensors) -> TensorFile:
    """Open a file with tensors, after checking that it is in the format that its name says.

    Raises:
        CheckpointError: The file is missing, damaged, or unsafe to open.
    """
    refuse_pointer(path)
    if path.suffix == ".bin":
        return TorchFile(path)
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            start = file.read(9)
        # A safetensors file begins with a length (8 bytes of any value), followed by a brace. A pickle does not.
        if start[8:] != b"{" and start.startswith((b"PK", b"\x80")):
            raise CheckpointError(
                f"{path}: is a pickle, which can run code when it is opened, expected a safetensors file; "
                "write it with safetensors.torch.save_file"
            )
    return open_safetensors(path)


def _read_index(path: Path) -> dict[str, str]:
    refuse_pointer(path)
    places = decode_json(
        read_bytes(path, CheckpointError, "expected an index of weight files"), _Index, path, CheckpointError
    ).weight_map
    suffix = ".bin" if path.name == _TORCH_INDEX else ".safetensors"
    for tensor, name in places.items():
        if not _FILE_NAME.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{path}: 'weight_map' names {name[:80]!r} for tensor {tensor!r}, expected the name of a "
                f"{suffix} file in the same folder, made of letters, digits, '.', '_' and '-'"
            )
    if not places:
        raise CheckpointError(f"{path}: 'weight_map' is empty, expected the name of a file for every tensor")
    return places


def _check_index(path: Path, places: dict[str, str], files: dict[str, TensorFile]) -> None:
    for tensor, name in places.items():
        if tensor not in files[name].entries:
            raise CheckpointError(
                f"{path}: 'weight_map' names the file {name} for tensor {tensor!r}, but that file has no such tensor"
            )
    for name, file in files.items():
        for tensor in file.entries:
            if places.get(tensor) != name:
                said = places.get(tensor, "no file")
                raise CheckpointError(f"{file.path}: holds tensor {tensor!r}, but {path.name} names {said} for it")
