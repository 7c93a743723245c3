"""Our own checkpoint format: a folder with config.json and model.safetensors, named as the reference model names them.

Opening reads headers only; tensors are read by rows when they are needed, so no table is ever held in RAM.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from molkv_export.modeling import Form, LookupExpertForCausalLM
from molkv_runtime.config import ModelConfig, read_config
from molkv_runtime.errors import CheckpointError
from molkv_runtime.hashing import file_sha256
from molkv_runtime.tensor_file import TensorFile

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "checkpoint.pt")


def tensors_to_save(model: LookupExpertForCausalLM) -> dict[str, torch.Tensor]:
    """Give the tensors of a checkpoint: the parameters by name, a tied LM head only once, as the embedding."""
    tied = model.config.tie_word_embeddings
    return {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == LM_HEAD)}


def _expected_shapes(config: ModelConfig, form: Form) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in tensors_to_save(LookupExpertForCausalLM(config, form)).items()}


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """An open checkpoint whose tensors are checked by name and shape, and by value when they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder / CONFIG)
        self._file = _open_weights(folder / WEIGHTS)
        self.form: Form = "lookup" if any(n.endswith(".experts.values") for n in self._file.entries) else "training"
        self._check_shapes()

    def _check_shapes(self) -> None:
        expected, found = _expected_shapes(self.config, self.form), self._file.entries
        path = self._file.path
        if missing := sorted(expected.keys() - found.keys()):
            raise CheckpointError(
                f"{path}: tensor {missing[0]!r} is missing ({len(missing)} in all), "
                f"expected {list(expected[missing[0]])} by {CONFIG}"
            )
        if extra := sorted(found.keys() - expected.keys()):
            raise CheckpointError(
                f"{path}: tensor {extra[0]!r} is one that this {CONFIG} has no place for ({len(extra)} in all)"
            )
        for name, shape in expected.items():
            if found[name].shape != shape:
                raise CheckpointError(
                    f"{path}: tensor {name!r} has shape {list(found[name].shape)}, expected {list(shape)} by {CONFIG}"
                )
            if found[name].dtype not in _DTYPES:
                raise CheckpointError(
                    f"{path}: tensor {name!r} has dtype {found[name].dtype}, expected one of {', '.join(_DTYPES)}"
                )

    @property
    def tensor_names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self._file.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor."""
        return self._file.entries[name].shape

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows start to stop (default: all) of a tensor as float32; errors as in `stored`."""
        return self.stored(name, start, stop).float()

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows start to stop (default: all) of a tensor in the dtype that the file has.

        Raises:
            CheckpointError: A value is NaN or infinite, or the file cannot be read.
        """
        entry = self._file.entries[name]
        raw = torch.from_numpy(self._file.read_rows(name, start, stop))
        values = raw.view(_DTYPES[entry.dtype]).reshape(-1, *entry.shape[1:])
        # Smallest and largest number tell it, NaN included, and need no copy.
        if not torch.isfinite(torch.stack(torch.aminmax(values))).all():
            raise CheckpointError(
                f"{self._file.path}: tensor {name!r} holds NaN or infinite values; this model cannot be exported"
            )
        return values

    @property
    def files(self) -> list[Path]:
        """The files that determine the model."""
        return [self.folder / CONFIG, self.folder / WEIGHTS]

    def sha256(self, advance: Callable[[int], object] = lambda _: None) -> dict[str, str]:
        """Hash the files that determine the model; `advance` is told the number of bytes after each piece."""
        hashes = {}
        for path in self.files:
            try:
                hashes[path.name] = file_sha256(path, advance)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        return hashes

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_weights(path: Path) -> TensorFile:
    pickles = [path.with_name(name) for name in _PICKLES if path.with_name(name).exists()]
    if not path.exists() and pickles:
        raise CheckpointError(
            f"{pickles[0]}: is a pickle, which can run code when it is opened; "
            f"convert it to {WEIGHTS} with safetensors.torch.save_file"
        )
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
        # A safetensors file opens with a length, which can be any bytes, and a brace; pickles do not.
        if start[8:] != b"{" and start.startswith((b"PK", b"\x80")):
            raise CheckpointError(
                f"{path}: is a pickle renamed to .safetensors, which can run code when it is opened; "
                "write it with safetensors.torch.save_file"
            )
    return TensorFile(path, CheckpointError)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder and check it as far as names, shapes and dtypes go.

    Raises:
        ConfigError: config.json is missing or impossible.
        CheckpointError: The weights are missing, a pickle, or do not fit the configuration.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; expected one with {CONFIG} and {WEIGHTS}")
    return Checkpoint(folder)
