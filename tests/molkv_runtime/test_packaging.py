"""The driver needs neither the exporter nor its libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "molkv_export"}:
            raise ImportError(f"the driver imports {name}")
sys.meta_path.insert(0, Refuse())
from molkv_runtime import Generator, Sampling, selftest
assert selftest(sys.argv[1]).failures == []
text = "".join(Generator(sys.argv[1]).text("def ", max_new_tokens=20, sampling=Sampling(temperature=0.5)))
assert text
print("loaded:", *sorted(name for name in sys.modules if name in ("torch", "onnx", "numpy", "onnxruntime")))
"""


def test_importing_and_running_the_driver_imports_neither_torch_nor_onnx(stdlib_mini_bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, stdlib_mini_bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "loaded: numpy onnxruntime\n"


_COMMAND = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
sys.argv = ["molkv-export", *sys.argv[1:]]
from molkv_export.commands import main
main()
"""


def _without_exporter(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command", [["inspect"], ["verify"], ["selftest"], ["run", "--prompt", "def ", "--max-new-tokens", "5"]]
)
def test_commands_for_devices_work_where_the_exporter_is_not_installed(
    command: list[str], stdlib_mini_bundle: Path
) -> None:
    done = _without_exporter(command[0], str(stdlib_mini_bundle), *command[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_commands_that_need_the_exporter_say_so_in_one_line(tmp_path: Path) -> None:
    done = _without_exporter("export", str(tmp_path), str(tmp_path / "bundle"))
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: this command needs the exporter, but \w+ is missing; run: pip install 'molkv-export\[export\]'\n",
        done.stderr,
    )
