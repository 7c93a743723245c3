"""`python -m benchmarks.validate_large`: time and RAM of export, validate and selftest for a model like MoLE-160M.

The model has 12 layers of hidden size 768, 4 experts per layer with keys of size 64, an expert window of 64, 50,304
token ids, and random weights in training form. The benchmark needs 10 GiB of disk and removes its files at the end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import torch

from benchmarks.store.model import model_config, write_checkpoint

_VOCAB_SIZE = 50_304


def main() -> None:
    """Print a row for each command."""
    Path("demo").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="demo") as name:
        folder = Path(name)
        config = msgspec.structs.replace(model_config(1), vocab_size=_VOCAB_SIZE, expert_intermediate_size=3072)
        write_checkpoint(config, folder / "checkpoint")
        size = (folder / "checkpoint" / "model.safetensors").stat().st_size
        print(f"checkpoint {size / 1024**3:.1f} GiB, float32; {torch.get_num_threads()} threads\n")
        print("| command | exit | seconds | peak RSS, MiB |\n|---|---|---|---|")
        bundle, checkpoint = str(folder / "bundle"), str(folder / "checkpoint")
        _run("export", checkpoint, bundle)
        _run("selftest", bundle)
        _run("validate", bundle, "--checkpoint", checkpoint, "--quick", "--bisect")
        _run("validate", bundle, "--checkpoint", checkpoint)


def _run(*arguments: str) -> None:
    start = time.perf_counter()
    # Each command has its own parent process, because RUSAGE_CHILDREN has the peak of the largest child.
    code = "import resource, subprocess, sys; rc = subprocess.run(sys.argv[1:]).returncode; " + (
        "print('PEAK', rc, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, sys.executable, "cli.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    *output, peak = done.stdout.strip().splitlines()
    _, status, size = peak.split()
    shown = " ".join(Path(argument).name for argument in arguments)
    print(f"| {shown} | {status} | {seconds:.0f} | {int(size) / 1024:.0f} |", flush=True)
    print("\n".join(output), done.stderr if status != "0" else "", file=sys.stderr)


main()
