"""What a folder holds that is a model, but not in a format that is read here."""

from __future__ import annotations

from pathlib import Path

from molkv_bundle import CheckpointError

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


def foreign_format(folder: Path) -> CheckpointError | None:
    """Return the error that says what a folder without weights holds instead; None: nothing that is known."""
    for pattern, meaning in _FORMATS:
        for path in sorted(folder.glob(pattern)):
            return CheckpointError(f"{path}: {meaning}")
    return None
