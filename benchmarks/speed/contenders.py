"""The contenders by name: the commands that start them, and the models that they need."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from benchmarks.speed.contest import Command
from benchmarks.speed.models import bundle, make_bundle, make_checkpoint
from molkv_bundle import DenseDtype, RowDtype

GENAI = {"float32": "fp32", "int4": "int4"}  # the dtypes of onnxruntime-genai, with the names that it gives to them
TITLES = {
    "dense": "dense floor",
    "mole": "MoLE",
    "molkv": "MoLKV",
    "ram": "MoLKV, tables in RAM",
    "genai": "onnxruntime-genai, dense",
    "baseline-dense": "dense floor of the baseline",
    "baseline-molkv": "MoLKV of the baseline",
    "eager": "PyTorch eager, MoLKV, float32",
    "naive": "naive ONNX export, MoLKV, float32",
}
_HERE = Path(__file__).parent


class Contenders(NamedTuple):
    """All contenders that a command can start.

    The name of a contender is a key of `TITLES`, for all but eager and naive with the dtype of the dense weights:
    `molkv int8`.
    """

    folder: Path  # of all models
    experts: RowDtype
    threads: int
    baseline: Path | None  # folder of bundles that another version of this program exported

    def baselines(self) -> list[str]:
        """Return the names of the contenders whose bundles are in the folder of the baseline."""
        if self.baseline is None:
            return []
        return [
            f"baseline-{model} {dtype}"
            for model in ("dense", "molkv")
            for dtype in get_args(DenseDtype)
            if bundle(self.baseline, model, dtype, self.experts).exists()
        ]

    def command(self, name: str) -> Command:
        """Return the command that starts a contender. First write its model if it does not exist."""
        kind, _, dtype = name.partition(" ")
        if kind == "genai":
            return [*_genai(self.folder / "genai", GENAI[dtype]), str(self.threads)]
        mode = kind if kind in ("ram", "eager", "naive") else "storage"
        return [sys.executable, "-m", "benchmarks.speed.process", mode, self._model(kind, dtype), str(self.threads)]

    def _model(self, kind: str, dtype: str) -> Path:
        if kind in ("eager", "naive"):
            return make_checkpoint(self.folder, "molkv")
        if kind.startswith("baseline-"):
            assert self.baseline is not None
            return bundle(self.baseline, kind.removeprefix("baseline-"), dtype, self.experts)
        model = "molkv" if kind == "ram" else kind
        return make_bundle(self.folder, model, msgspec.convert(dtype, DenseDtype), self.experts)


def title(name: str) -> str:
    """Return the title of a contender."""
    kind, _, dtype = name.partition(" ")
    return f"{TITLES[kind]}, {dtype}" if dtype else TITLES[kind]


def _genai(folder: Path, dtype: str) -> Sequence[str | Path]:
    """Install onnxruntime-genai and make its model, which takes some minutes, if the model does not exist yet."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / dtype / "genai_config.json").exists():
        venv.create(folder / "venv", with_pip=True)
        requirements = _HERE / "genai-requirements.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True, stdout=sys.stderr)
        tokenizer = _HERE.parents[1] / "examples" / "stdlib-mini" / "tokenizer.json"
        script: list[str | Path] = [python, _HERE / "genai_model.py", folder, tokenizer, dtype]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return python, _HERE / "genai_process.py", folder / dtype
