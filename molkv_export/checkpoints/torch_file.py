"""Positioned reads from files that `torch.save` has written.

Such a file is a zip archive: a pickle that names tensors, and their bytes, which are stored as they are. The pickle is
read with `weights_only`, on the device "meta", so that nothing but names, shapes and places comes into RAM; bytes are
read like those of a safetensors file.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch

from molkv_runtime.errors import CheckpointError
from molkv_runtime.tensor_file import TensorEntry, TensorFile

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_WRITE_AGAIN = "write it again with torch.save, or as safetensors"


class TorchFile(TensorFile):
    """An open `pytorch_model.bin`: a dict of tensors by name."""

    def __init__(self, path: Path) -> None:
        """Open and read what is there, without the tensors' bytes.

        Raises:
            CheckpointError: The file is missing, damaged, or holds something else than a dict of plain tensors.
        """
        super().__init__(path, CheckpointError)

    def _read_header(self) -> dict[str, TensorEntry]:
        _check_archive(self.path)
        try:
            found = torch.load(self.path, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as cause:
            raise CheckpointError(
                f"{self.path}: holds something else than tensors, which could run code when it is opened; "
                "save the state_dict alone"
            ) from cause
        except Exception as cause:  # what a damaged archive makes PyTorch raise is not documented
            raise CheckpointError(f"{self.path}: cannot be read by torch.load ({_first_line(cause)})") from cause
        if not isinstance(found, dict) or not found:
            raise CheckpointError(f"{self.path}: holds a {type(found).__name__}, expected a dict of tensors by name")
        return {str(name): self._entry_of(str(name), tensor) for name, tensor in found.items()}

    def _entry_of(self, name: str, tensor: object) -> TensorEntry:
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"{self.path}: {name!r} is a {type(tensor).__name__}, expected a plain tensor")
        if not tensor.is_contiguous():
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is a transposed or strided view; save its .contiguous()"
            )
        storage_start = tensor.untyped_storage()._checkpoint_offset
        if storage_start is None:
            raise CheckpointError(
                f"{self.path}: PyTorch {torch.__version__} does not say where tensors stand; "
                "update it, or convert the file to safetensors"
            )
        start = storage_start + int(tensor.storage_offset()) * tensor.itemsize
        size = tensor.nelement() * tensor.itemsize
        if start + size > self.size():
            raise CheckpointError(f"{self.path}: tensor {name!r} ends behind the end of the file; is it truncated?")
        return TensorEntry(_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), start, size)


def _check_archive(path: Path) -> None:
    """Refuse what PyTorch would read otherwise than by place: old formats, compressed parts, foreign byte order."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
            orders = [archive.read(part) for part in parts if part.filename.endswith("/byteorder")]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as cause:
        raise CheckpointError(
            f"{path}: is not what torch.save writes since PyTorch 1.6, or is truncated ({_first_line(cause)}); "
            f"{_WRITE_AGAIN}"
        ) from cause
    if packed:
        raise CheckpointError(f"{path}: its part {packed[0]!r} is compressed; {_WRITE_AGAIN}")
    if any(order != b"little" for order in orders):
        raise CheckpointError(f"{path}: is from a big-endian machine; {_WRITE_AGAIN} on another")


def _first_line(cause: Exception) -> str:
    return (str(cause).splitlines() or [type(cause).__name__])[0]
