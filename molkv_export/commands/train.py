"""`molkv-export train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from molkv_bundle import read_config
from molkv_export.commands.options import PATH, common_options, json_option, print_json


@click.command("train")
@click.argument("config", type=PATH)
@click.argument("checkpoint", type=PATH)
@click.option("--steps", type=int, default=400, show_default=True, help="Number of optimizer steps.")
@click.option("--batch-size", type=int, default=12, show_default=True, help="Number of sequences in a step.")
@click.option("--sequence-length", type=int, default=256, show_default=True, help="Number of tokens in a sequence.")
@click.option(
    "--learning-rate", type=float, default=2e-3, show_default=True, help="Largest learning rate; it decays to a tenth."
)
@click.option("--warmup-steps", type=int, default=100, show_default=True, help="Number of steps of linear warm-up.")
@click.option(
    "--weight-decay", type=float, default=0.1, show_default=True, help="Weight decay of AdamW, for matrices only."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the initial weights and the batches.")
@click.option("--force", is_flag=True, help="Replace CHECKPOINT if it exists.")
@json_option
@common_options
def train_command(config: Path, checkpoint: Path, force: bool, as_json: bool, notes: Console, **options: float) -> None:
    """Train a small model and write it as CHECKPOINT.

    The training text is Python's standard library. CONFIG is a config.json. The command saves its state in
    CHECKPOINT.training every 100 steps and when it is interrupted. The same command then continues from the saved step.

    \b
    Examples:
      molkv-export train examples/stdlib-mini/configs/molkv.json my-model --steps 400
      molkv-export train examples/stdlib-mini/configs/mole.json my-mole --seed 1 --json > losses.json
    """
    from molkv_export.training.loop import TrainOptions, train

    chosen = TrainOptions(**options)  # type: ignore[arg-type]
    result = train(read_config(config), checkpoint, chosen, force=force, console=notes)
    if as_json:
        print_json({"checkpoint": str(checkpoint), **asdict(result)})
        return
    click.echo(
        f"{checkpoint}: validation loss {result.validation_loss:.4f} nats per token "
        f"(without the experts: {result.validation_loss_experts_silenced:.4f})"
    )
