"""Make a dense Llama of the size of MoLE-160M for onnxruntime-genai, with the model builder of onnxruntime-genai.

The program runs in a separate environment (`benchmarks/speed/genai-requirements.txt`) without this project.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 50_304,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
}


def main() -> None:
    """Write the model in one or more dtypes. Arguments: FOLDER TOKENIZER_JSON DTYPE..."""
    folder, tokenizer, *dtypes = sys.argv[1:]
    source = Path(folder) / "source"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(source)
    # The builder needs a tokenizer. Any tokenizer is possible, since the benchmark uses random token ids.
    PreTrainedTokenizerFast(tokenizer_file=tokenizer, eos_token="<|endoftext|>").save_pretrained(source)
    for dtype in dtypes:
        command: list[str | Path] = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", source, "-o", Path(folder) / dtype, "-p", dtype, "-e", "cpu", "-c", Path(folder) / "cache"]
        if dtype == "int4":  # the block size of our bundles, so that both read the same number of bytes
            command += ["--extra_options", "block_size=128", "accuracy_level=4"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
