"""Train dense, MoLE and MoLKV models of equal dense size on the same text; print validation losses as Markdown.

Usage: python examples/stdlib-mini/compare.py RUNS          (about an hour on one core)

RUNS is a folder for the checkpoints. Finished runs in this folder are not repeated. Unfinished runs are resumed.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import msgspec

from molkv_bundle import read_config
from molkv_export.corpus import standard_library, train_tokenizer
from molkv_export.terminal import console
from molkv_export.training.loop import TrainOptions, TrainResult, train

CONFIGS = Path(__file__).parent / "configs"
SEEDS = (0, 1, 2)


def main(runs: Path) -> None:
    """Train the models that are not yet in the folder `runs`, and print the table."""
    corpus = standard_library()
    tokenizer = None
    results: dict[str, list[TrainResult]] = {"dense": [], "mole": [], "molkv": []}
    for seed in SEEDS:
        options = TrainOptions(steps=800, batch_size=6, learning_rate=5e-3, warmup_steps=50, seed=seed)
        for name, found in results.items():
            config = read_config(CONFIGS / f"{name}.json")
            out = runs / f"{name}-seed{seed}"
            if not out.exists():
                tokenizer = tokenizer or train_tokenizer(corpus.train, config.vocab_size)
                train(config, out, options, tokenizer=tokenizer, corpus=corpus, console=console(stderr=True))
            log = msgspec.json.decode((out / "training.json").read_bytes())
            if log["options"] != asdict(options):
                raise SystemExit(f"{out}: was trained with other options; remove the folder and run this program again")
            found.append(msgspec.convert(log["result"], TrainResult))
    print("| model | validation loss, mean | spread (max - min) | each seed | experts silenced |")
    print("|---|---|---|---|---|")
    for name, found in results.items():
        losses = [result.validation_loss for result in found]
        silenced = statistics.mean(result.validation_loss_experts_silenced for result in found)
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        spread = max(losses) - min(losses)
        print(f"| {name} | {statistics.mean(losses):.3f} | {spread:.3f} | {each} | {silenced:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
