"""Checks of a checkpoint's files: whether their format is supported, and whether they change while they are read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from molkv_bundle import CheckpointError

CONFIG = "config.json"
_POINTER = b"version https://git-lfs.github.com/spec/"

_AS_SAFETENSORS = "save it with transformers' save_pretrained, or as model.safetensors with safetensors.torch.save_file"
_PICKLE = (
    "is a pickle, which can run code when it is opened; "
    "convert it to model.safetensors with safetensors.torch.save_file"
)
# Messages by pattern of the file's name. The first match is reported, so the more specific patterns come first.
_FORMATS = (
    (
        "adapter_model.*",
        "is a LoRA adapter, not a model; merge it into its base model (PEFT: merge_and_unload), then save the "
        "merged model with save_pretrained",
    ),
    (
        "consolidated.*",
        "is in the format of the model's authors (Meta, Mistral), expected Hugging Face's format; convert it with the "
        "model's conversion script in transformers",
    ),
    ("*.gguf", "is in llama.cpp's format, which is usually quantized; pass the checkpoint it was converted from"),
    ("*.onnx", "is an ONNX graph, expected a checkpoint; pass the checkpoint it was exported from"),
    ("tf_model.h5", f"holds TensorFlow's weights; load them with from_tf=True in transformers and {_AS_SAFETENSORS}"),
    (
        "flax_model.msgpack",
        f"holds Flax's weights; load them with from_flax=True in transformers and {_AS_SAFETENSORS}",
    ),
    ("zero_to_fp32.py", "belongs to a DeepSpeed checkpoint; run this script, which writes pytorch_model.bin"),
    ("*.distcp", f"is a part of a distributed PyTorch checkpoint; load all of it in PyTorch and {_AS_SAFETENSORS}"),
    (
        "*.safetensors",
        "has a name that the exporter does not read; rename it to model.safetensors if it holds the whole model; if it "
        "holds a part of the model, add model.safetensors.index.json",
    ),
    *((name, _PICKLE) for name in ("model.bin", "*.pt", "*.pth", "*.ckpt")),
)


class FileState(NamedTuple):
    """Properties of a file. At least one changes if the file's content changes or if another file takes its name."""

    device: int
    inode: int
    size: int  # bytes
    modified_ns: int
    changed_ns: int  # changes even if a program restores the modification time


def file_state(path: Path) -> FileState | None:
    """Return the state of a file, or None if it does not exist. Call this before the file is read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def changed(path: Path | str) -> CheckpointError:
    """Return the error for a file that has changed since it was first read."""
    return CheckpointError(
        f"{path}: was changed while it was being read; stop the program that writes to it and run the command again"
    )


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer: a small text file in the place of a large file that is not downloaded yet.

    Raises:
        CheckpointError: The file is a Git LFS pointer.
    """
    try:
        if not path.is_file():  # pipes and folders are refused later, when they are read
            return
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError:
        return
    if start == _POINTER:
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, expected the file itself; run `git lfs pull` in its folder, or download "
            "the file itself"
        )


def foreign_format(folder: Path) -> CheckpointError | None:
    """Return an error for the first file in another known format; None if the folder has no such file."""
    for pattern, meaning in _FORMATS:
        for path in sorted(folder.glob(pattern)):
            return CheckpointError(f"{path}: {meaning}")
    return None
