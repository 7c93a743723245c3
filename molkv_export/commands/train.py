"""`molkv-export train`."""

from __future__ import annotations

from pathlib import Path

import click

from molkv_bundle import read_config
from molkv_export.commands.options import PATH


@click.command("train")
@click.argument("config", type=PATH)
@click.argument("checkpoint", type=PATH)
@click.option("--steps", type=int, default=400, show_default=True, help="Optimizer steps.")
@click.option("--batch-size", type=int, default=12, show_default=True, help="Sequences in a step.")
@click.option("--sequence-length", type=int, default=256, show_default=True, help="Tokens in a sequence.")
@click.option("--learning-rate", type=float, default=2e-3, show_default=True, help="Peak; decays to a tenth.")
@click.option("--warmup-steps", type=int, default=100, show_default=True, help="Steps of linear warm-up.")
@click.option("--weight-decay", type=float, default=0.1, show_default=True, help="Of matrices, in AdamW.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of initial weights and batches.")
@click.option("--force", is_flag=True, help="Replace CHECKPOINT if it exists.")
def train_command(config: Path, checkpoint: Path, force: bool, **options: float) -> None:
    """Train a small model on Python's standard library and write it as CHECKPOINT.

    CONFIG is a config.json. The run saves its state in CHECKPOINT.training every 100 steps; after an interrupt, the
    same command goes on from there.

    \b
    Example:
      molkv-export train examples/stdlib-mini/configs/molkv.json my-model --steps 400
    """
    from molkv_export.training.loop import TrainOptions, train

    result = train(read_config(config), checkpoint, TrainOptions(**options), force=force)  # type: ignore[arg-type]
    click.echo(
        f"{checkpoint}: validation loss {result.validation_loss:.4f} nats a token "
        f"(experts silenced: {result.validation_loss_experts_silenced:.4f})"
    )
