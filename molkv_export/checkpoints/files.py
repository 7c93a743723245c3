"""Files of a checkpoint: whether they hold what their names say, and whether they stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from molkv_bundle import CheckpointError

_POINTER = b"version https://git-lfs.github.com/spec/"

_AS_SAFETENSORS = "save it with transformers' save_pretrained, or as model.safetensors with safetensors.torch.save_file"
_PICKLE = (
    "is a pickle, which can run code when it is opened; "
    "convert it to model.safetensors with safetensors.torch.save_file"
)
# By pattern of the file's name; the first that is there is named. What says more about a folder comes first.
_FORMATS = (
    (
        "adapter_model.*",
        "is a LoRA adapter, not a model; merge it into its base model first (PEFT: merge_and_unload), then save that "
        "with save_pretrained",
    ),
    (
        "consolidated.*",
        "is in the format of the model's authors (Meta's, Mistral's), not Hugging Face's; convert it with the script "
        "for it in transformers",
    ),
    ("*.gguf", "is llama.cpp's format, mostly quantized; give the checkpoint that it was made from"),
    ("*.onnx", "is a graph that was exported already; give the checkpoint that it was made from"),
    ("tf_model.h5", f"holds TensorFlow's weights; load them with from_tf=True in transformers and {_AS_SAFETENSORS}"),
    (
        "flax_model.msgpack",
        f"holds Flax's weights; load them with from_flax=True in transformers and {_AS_SAFETENSORS}",
    ),
    ("zero_to_fp32.py", "belongs to a checkpoint of DeepSpeed; run it, it writes pytorch_model.bin"),
    ("*.distcp", f"is a part of a distributed checkpoint of PyTorch; load it there and {_AS_SAFETENSORS}"),
    (
        "*.safetensors",
        "is not a name that is read; name it model.safetensors if it holds the whole model, and if it holds a part, "
        "add model.safetensors.index.json",
    ),
    *((name, _PICKLE) for name in ("model.bin", "*.pt", "*.pth", "*.ckpt")),
)


class FileState(NamedTuple):
    """What changes when the content of a file does, or when another file takes its name."""

    device: int
    inode: int
    size: int  # bytes
    modified_ns: int
    changed_ns: int  # also where a copy keeps the time of modification


def file_state(path: Path) -> FileState | None:
    """Return the state of a file; None if there is none. Take it before the file is read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def changed(path: Path) -> CheckpointError:
    """Return the error for a file that is another one than when it was first read."""
    return CheckpointError(
        f"{path}: was changed while it was being read; let nothing write to the checkpoint and run the command again"
    )


def refuse_pointer(path: Path) -> None:
    """Refuse what Git leaves in the place of a large file that was not downloaded.

    Raises:
        CheckpointError: The file is a pointer of Git LFS.
    """
    try:
        if not path.is_file():  # pipes and folders are refused where they are read
            return
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError:
        return
    if start == _POINTER:
        raise CheckpointError(
            f"{path}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder, or download it"
        )


def foreign_format(folder: Path) -> CheckpointError | None:
    """Return the error that says what a folder without weights holds instead; None: nothing that is known."""
    for pattern, meaning in _FORMATS:
        for path in sorted(folder.glob(pattern)):
            return CheckpointError(f"{path}: {meaning}")
    return None
