"""Reading tensors by their position in a file that `torch.save` has written.

Such a file is a zip archive. It holds a pickle with the names of the tensors, and the uncompressed bytes of the
tensors. The pickle is read with `weights_only` on the device "meta", so that only names, shapes and places are in RAM.
The bytes are read like those of a safetensors file. The file is untrusted input: it is checked before PyTorch opens it.
"""

from __future__ import annotations

import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path

import torch

from molkv_bundle import MAX_HEADER_BYTES, CheckpointError, TensorEntry, TensorFile

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# The only names that a pickle of plain tensors loads. `weights_only` allows more names; some can use up all memory.
_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch [A-Za-z0-9]+Storage|torch device"
)
_OTHER_DTYPE = "torch._utils _rebuild_tensor_v3"  # tensors of float8 and other recent dtypes
_LOCAL_HEADER = 30  # bytes of a part's header in a zip archive; the part's name follows
_SMALL = 16  # bytes; parts that hold a single value are smaller
_WRITE_AGAIN = "write it again with torch.save, or as safetensors"


class TorchFile(TensorFile):
    """An open `pytorch_model.bin`: a dict of tensors by name."""

    def __init__(self, path: Path) -> None:
        """Open the file and read the names, shapes and places of its tensors.

        Raises:
            CheckpointError: The file is missing, damaged, or not a dict of plain tensors.
        """
        self._storages: dict[int, int] = {}  # offset -> size of each part of the archive, in bytes
        super().__init__(path, CheckpointError)

    def _read_header(self) -> dict[str, TensorEntry]:
        try:
            self._check_archive()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(self.path, map_location="meta", weights_only=True)
        except CheckpointError:
            raise
        except Exception as cause:  # zipfile and PyTorch do not document their errors for a damaged archive
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise CheckpointError(
                f"{self.path}: is truncated, or is not in the format that torch.save has since PyTorch 1.6 ({reason}); "
                f"{_WRITE_AGAIN}"
            ) from cause
        if not isinstance(found, dict) or not found:
            raise CheckpointError(
                f"{self.path}: holds an object of type {type(found).__name__}, expected a dict with at least one "
                "tensor by name"
            )
        return {name: self._entry_of(name, tensor) for name, tensor in found.items()}

    def _check_archive(self) -> None:
        """Refuse an archive that is unsafe to open, or in which PyTorch would read other bytes than this class."""
        with zipfile.ZipFile(self.path) as archive, self.path.open("rb") as file:
            parts = sorted(archive.infolist(), key=lambda part: part.header_offset)
            keys = [part.filename.rpartition("/data/")[2] for part in parts if "/data/" in part.filename]
            if keys != [str(number) for number in range(len(keys))]:
                raise CheckpointError(
                    f"{self.path}: its parts are not in the order in which torch.save writes them; {_WRITE_AGAIN}"
                )
            for part in parts:
                if part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1:
                    raise CheckpointError(
                        f"{self.path}: its part {part.filename!r} is compressed or encrypted; {_WRITE_AGAIN}"
                    )
                file.seek(part.header_offset)
                header = file.read(_LOCAL_HEADER)
                name, extra = struct.unpack("<HH", header[-4:])
                self._storages[part.header_offset + _LOCAL_HEADER + name + extra] = part.file_size
                self._check_part(archive, part)

    def _check_part(self, archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
        kind = part.filename.rpartition("/")[2]
        if kind in ("byteorder", ".storage_alignment"):
            said = archive.read(part) if part.file_size < _SMALL else b""
            if not (said == b"little" or (kind != "byteorder" and re.fullmatch(rb"[1-9]\d*", said))):
                raise CheckpointError(
                    f"{self.path}: its part {part.filename!r} holds {said!r}, which torch.save does not write on a "
                    f"little-endian machine; {_WRITE_AGAIN}"
                )
        elif kind == "data.pkl":
            if part.file_size > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{self.path}: its part {part.filename!r} has {part.file_size} bytes, expected at most "
                    f"{MAX_HEADER_BYTES}"
                )
            operations = pickletools.genops(archive.read(part))
            for operation, argument, _ in operations:
                asked = str(argument) if operation.name == "GLOBAL" else operation.name
                if asked == _OTHER_DTYPE:
                    names = (str(argument).removeprefix("torch ") for _, argument, _ in operations)
                    dtype = next(
                        (name for name in names if isinstance(getattr(torch, name, 0), torch.dtype)), "unknown"
                    )
                    raise CheckpointError(
                        f"{self.path}: holds a tensor of dtype {dtype}, expected one of "
                        f"{', '.join(sorted(_NAMES.values()))}"
                    )
                if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not _GLOBALS.fullmatch(asked):
                    raise CheckpointError(
                        f"{self.path}: its pickle loads {asked!r}, which could run code, expected only plain tensors; "
                        "save only the state_dict"
                    )

    def _entry_of(self, name: object, tensor: object) -> TensorEntry:
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{self.path}: {name!r} is of type {type(tensor).__name__}, expected a plain tensor")
        if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is a transposed, strided or negated view; save its .contiguous()"
            )
        # PyTorch computes offsets from the order and alignment of the parts. The archive's own offsets must agree.
        storage = tensor.untyped_storage()
        start, size = storage._checkpoint_offset, tensor.nelement() * tensor.itemsize
        first = int(tensor.storage_offset()) * tensor.itemsize
        if start is None or self._storages.get(start) != storage.nbytes() or first + size > storage.nbytes():
            raise CheckpointError(
                f"{self.path}: the bytes of tensor {name!r} are not where torch.save puts them; {_WRITE_AGAIN}"
            )
        return TensorEntry(_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), start + first, size)
