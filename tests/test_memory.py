"""Peak RAM does not grow with the tables. `pytest -s tests/test_memory.py` prints the measurements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from molkv_bundle import Bundle, MoleConfig, MolkvConfig
from molkv_export.checkpoints.native import tensors_to_save
from molkv_export.families import reference_model
from molkv_export.modeling import Form
from tests.molkv_export.checkpoints.published import published_config, training_tensors, write_folder

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

FEW, MANY = 1_000, 100_000
HIDDEN = 64
MIB = 1024**2
MAX_MEMORY = 80 * MIB

_EXPORT = (
    "from pathlib import Path; from molkv_export import export; "
    f"export(Path(sys.argv[1]), Path(sys.argv[2]), max_memory={MAX_MEMORY})"
)
_RUN = (
    "from molkv_runtime import Generator, Bundle; g = Generator(sys.argv[2]); v = g.config.vocab_size; "
    "list(g.stream([[v * i // 100 for i in range(100)]], max_new_tokens=50))"
)
# Not ru_maxrss of getrusage, which includes the memory of this process at the time of the fork.
_PEAK = "; print('peak', next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def _checkpoint(vocab_size: int, form: Form, folder: Path) -> Path:
    config = MolkvConfig(
        model_type="molkv",
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        num_experts=4,
        expert_key_size=16,
        expert_window=16,
    )
    torch.manual_seed(0)
    folder.mkdir()
    save_file(tensors_to_save(reference_model(config, form)), folder / "model.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return folder


def _peak(code: str, *arguments: Path) -> int:
    """Run code in a separate process and return its peak resident set in bytes."""
    command = [sys.executable, "-c", f"import sys; {code}{_PEAK}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


def _published(vocab_size: int, file: str, folder: Path) -> Path:
    """Write a published MoLE whose experts of all layers are in one table."""
    layers, experts = 3, 4
    config = MoleConfig(
        model_type="mole",
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        num_experts=experts,
        hidden_act="gelu",
    )
    torch.manual_seed(0)
    tensors = training_tensors(reference_model(config))
    tensors = {name: t for name, t in tensors.items() if ".experts." not in name and "expert_layernorm" not in name}
    tensors["model.moe_table.weight"] = torch.randn(vocab_size, layers * experts * HIDDEN).half()
    write_folder(folder, published_config(config), tensors)
    if file == "pytorch_model.bin":
        torch.save(tensors, folder / file)
        (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_table_of_all_layers_is_streamed(file: str, tmp_path: Path) -> None:
    few, many = (
        _peak(_EXPORT, _published(size, file, tmp_path / f"{size}"), tmp_path / f"{size}.b") for size in (FEW, MANY)
    )
    lm_head = (MANY - FEW) * HIDDEN * 4
    table = (tmp_path / str(MANY) / file).stat().st_size
    beyond = many - few - lm_head
    print(f"\n{file} of {table / MIB:.0f} MiB: peak RSS beyond the LM head's grows by {beyond / MIB:.0f} MiB")
    assert beyond < MAX_MEMORY < table / 1.5


@pytest.mark.parametrize("form", ["training", "lookup"])
def test_exporting_and_running_a_hundred_times_more_token_ids_takes_no_more_ram(form: Form, tmp_path: Path) -> None:
    folders = {
        size: (_checkpoint(size, form, tmp_path / f"{size}"), tmp_path / f"{size}.bundle") for size in (FEW, MANY)
    }
    lm_head = (MANY - FEW) * HIDDEN * 4
    # While it loads a graph, ONNX Runtime holds the LM head twice: as a mapped file, and packed for the matrix product.
    for what, code, copies in (("export", _EXPORT, 1), ("run", _RUN, 2)):
        few, many = (_peak(code, *folders[size]) for size in (FEW, MANY))
        beyond = many - few - copies * lm_head
        print(
            f"\n{what}, {form} form: peak RSS {few / MIB:.0f} MiB with {FEW} ids, {many / MIB:.0f} with {MANY}; "
            f"beyond the LM head's own {copies} x {lm_head / MIB:.0f} MiB: {beyond / MIB:.0f} MiB"
        )
        assert beyond < MAX_MEMORY
    bundle = Bundle(folders[MANY][1])
    store = sum(bundle.manifest.files[shard.file].size for shard in bundle.manifest.experts.shards)
    assert store > 1.5 * MAX_MEMORY  # so the check above fails if the store is held in RAM
