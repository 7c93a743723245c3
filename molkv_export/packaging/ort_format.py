"""Convert graphs to ORT format, ONNX Runtime's own format, which its minimal builds read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime

from molkv_bundle import ProviderError, one_line

OPERATORS = "required_operators.config"

# Optimizers to turn off. NchwcTransformer chooses a memory layout for the processor of this machine, not of the phone.
# MatMulAddFusion turns MatMul and Add into a Gemm with a computed bias, which mobile compilers refuse. ONNX Runtime's
# own converter (`onnxruntime.tools.convert_onnx_models_to_ort`) makes the same calls as this module, but it replaces
# this list by its own, so it cannot turn MatMulAddFusion off.
_WITHOUT = "NchwcTransformer;MatMulAddFusion"

# Runs in a separate process, because the import changes logging and sys.path, and imports PyTorch if it is installed.
_OPERATORS_PROGRAM = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from onnxruntime.tools.ort_format_model import create_config_from_models
create_config_from_models([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]), False)
"""


def convert_graphs(graphs: dict[Path, Path], operators: Path) -> None:
    """Convert ONNX files to ORT format, so that a provider on the device can still compile the parts that it supports.

    Args:
        graphs: File to write for each ONNX file. The written file includes the weights.
        operators: File to write with the list of operators that a minimal build of ONNX Runtime needs.

    Raises:
        ProviderError: ONNX Runtime cannot convert a graph.
        OSError: The disk is full, or writing fails.
    """
    with TemporaryDirectory(dir=operators.parent, prefix=".operators-") as temporary:
        plain = {source: Path(temporary) / f"{number}.ort" for number, source in enumerate(graphs)}
        for source, target in graphs.items():
            # With "save", ONNX Runtime applies optimizations when the app loads the file. Only the "apply" file has the
            # operators that these optimizations create.
            _convert(source, target, "save")
            _convert(source, plain[source], "apply")
        _write_operators([*graphs.values(), *plain.values()], operators)


def _convert(source: Path, target: Path, optimizations: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # no log of errors, which are also raised as exceptions
    options.optimized_model_filepath = str(target)
    config = {
        "session.save_model_format": "ORT",
        "session.qdqisint8allowed": "1",  # as in ONNX Runtime's converter for ARM
        "optimization.minimal_build_optimizations": optimizations,
        "optimization.disable_specified_optimizers": _WITHOUT,
    }
    for name, value in config.items():
        options.add_session_config_entry(name, value)
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many exception types, none of them public
        raise ProviderError(f"{source}: cannot be converted by ONNX Runtime: {one_line(error)}") from error


def _write_operators(models: Iterable[Path], path: Path) -> None:
    command = [sys.executable, "-c", _OPERATORS_PROGRAM, str(path), *map(str, models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProviderError(f"{path}: ONNX Runtime cannot list the operators: {done.stderr.strip().splitlines()[-1]}")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.startswith("#"))  # comments contain local folder names
    path.write_text(kept, encoding="utf-8")
