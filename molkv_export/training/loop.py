"""Training a model with AdamW, linear warm-up and cosine decay. An interrupted run can be resumed."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from molkv_bundle import ArgumentError, ModelConfig, OutputError, RequestError, contents
from molkv_export.atomic_folder import atomic_folder, check_output
from molkv_export.checkpoints.files import CONFIG
from molkv_export.checkpoints.native import tensors_to_save
from molkv_export.checkpoints.weights import WEIGHTS
from molkv_export.corpus import END_OF_TEXT, Corpus, encode, standard_library, train_tokenizer
from molkv_export.families import reference_model
from molkv_export.modeling import ReferenceModel
from molkv_export.terminal import status
from molkv_export.training.interrupts import hold_interrupts
from molkv_export.training.losses import validation_losses

SAVE_EVERY_STEPS = 100
_AVERAGED_STEPS = 50
_FILES = (CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json", "generation_config.json", "training.json")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run. Options, configuration and text together determine the result."""

    steps: int = 400
    batch_size: int = 12
    sequence_length: int = 256
    learning_rate: float = 2e-3  # largest learning rate; it decays to a tenth
    warmup_steps: int = 100
    weight_decay: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "sequence_length", "learning_rate"):
            if not 0 < getattr(self, name) < 2**63:
                raise ArgumentError(name, getattr(self, name), "more than 0 and less than 2^63")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ArgumentError(name, getattr(self, name), "0 or more and less than 2^63")


@dataclass(frozen=True)
class TrainResult:
    """Losses at the end of a run, in nats per token."""

    train_loss: float  # mean over the last 50 steps
    validation_loss: float
    validation_loss_experts_silenced: float


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay to a tenth of the peak."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def train(
    config: ModelConfig,
    out: Path,
    options: TrainOptions,
    *,
    tokenizer: Tokenizer | None = None,
    corpus: Corpus | None = None,
    force: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a model on Python's standard library and write a checkpoint folder in training form.

    The state is saved in `OUT.training` every 100 steps, after the last step, and when SIGINT, SIGTERM or SIGHUP
    interrupts the training. The same call then resumes from the saved step. SIGTERM and SIGHUP interrupt the training
    only if the program has a Python handler for them, as the command line has; by default, they end the process.

    Args:
        config: Configuration of the model.
        out: The checkpoint folder to write.
        options: Steps, batch size, learning rate, seed.
        tokenizer: Tokenizer to use; by default, a new one is trained on the text.
        corpus: Texts to use; by default, the modules of the standard library.
        force: Replace `out` if it exists and is a checkpoint.
        console: Console that shows the progress; None shows nothing.

    Raises:
        KeyboardInterrupt: A signal interrupted the training. Its note says which state is saved.
        OutputError: `out` exists, or the state in `OUT.training` belongs to a different run.
        RequestError: The text is too short, sequence_length exceeds the model's context, or the tokenizer has more
            tokens than the model.
    """
    check_output(out, is_ours=_is_checkpoint, force=force)
    if options.sequence_length > config.max_position_embeddings:
        limit = f"at most {config.max_position_embeddings} (the model's max_position_embeddings)"
        raise ArgumentError("sequence_length", options.sequence_length, limit)
    console = console or Console(quiet=True)
    tokenizer, train_ids, validation_ids = _encoded(config, options, tokenizer, corpus, console)
    model = reference_model(config)
    model.initialize(options.seed)
    state = _State(out, config, options, train_ids)
    try:
        train_loss = _run_steps(model, train_ids, options, state, console)
        loss, silenced = validation_losses(model, validation_ids, options.sequence_length, console)
    except KeyboardInterrupt as error:
        if state.saved_step:
            error.add_note(
                f"the state after step {state.saved_step} is saved in {state.folder}; the same command continues from "
                "there"
            )
        raise
    result = TrainResult(train_loss, loss, silenced)
    _write_checkpoint(out, model, tokenizer, options, result, force)
    return result


def _encoded(
    config: ModelConfig, options: TrainOptions, tokenizer: Tokenizer | None, corpus: Corpus | None, console: Console
) -> tuple[Tokenizer, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the tokenizer, and the token ids of the training text and of the validation text."""
    with status(console, "reading the standard library and training the tokenizer"):
        corpus = corpus or standard_library()
        tokenizer = tokenizer or train_tokenizer(corpus.train, config.vocab_size)
        train_ids, validation_ids = encode(tokenizer, corpus.train), encode(tokenizer, corpus.validation)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise RequestError(
            f"tokenizer: has {tokenizer.get_vocab_size()} tokens, expected at most the model's vocab_size "
            f"({config.vocab_size})"
        )
    if min(len(train_ids), len(validation_ids)) <= options.sequence_length:
        raise RequestError(
            f"sequence_length is {options.sequence_length}, expected less than the number of tokens in the training "
            f"text ({len(train_ids)}) and in the validation text ({len(validation_ids)})"
        )
    return tokenizer, train_ids, validation_ids


def _is_checkpoint(folder: Path) -> bool:
    names = {path.name for path in contents(folder)}
    return {CONFIG, WEIGHTS, "training.json"} <= names <= set(_FILES)


def _run_steps(
    model: ReferenceModel, ids: npt.NDArray[np.int64], options: TrainOptions, state: _State, console: Console
) -> float:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95))
    losses = state.load(model, optimizer)
    first = state.saved_step
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn())
    with Progress(TextColumn("training"), *columns, console=console) as progress, hold_interrupts() as interrupts:
        task = progress.add_task("", total=options.steps, completed=first, loss=float("nan"))
        for step in range(first, options.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, options)
            inputs, targets = training_batch(ids, options, step)
            loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses = [*losses, loss.item()][-_AVERAGED_STEPS:]
            progress.update(task, advance=1, loss=float(np.mean(losses)))
            done = step + 1
            is_interrupted = interrupts.came  # read once: a signal after this line waits for the end of the next step
            if done % SAVE_EVERY_STEPS == 0 or done == options.steps or is_interrupted:
                state.save(model, optimizer, done, losses)
                _LOG.info("step %d: loss %.4f", done, float(np.mean(losses)))
            if is_interrupted:
                break
    return float(np.mean(losses))


def training_batch(ids: npt.NDArray[np.int64], options: TrainOptions, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the batch of a step. The draw depends only on seed and step, so a resumed run gets the same batches."""
    starts = np.random.default_rng([options.seed, step]).integers(
        0, len(ids) - options.sequence_length, options.batch_size
    )
    windows = torch.from_numpy(np.stack([ids[start : start + options.sequence_length + 1] for start in starts]))
    return windows[:, :-1], windows[:, 1:]


class _State:
    """The state of an unfinished run. For a checkpoint folder OUT, the state is saved in the folder OUT.training."""

    def __init__(self, out: Path, config: ModelConfig, options: TrainOptions, ids: npt.NDArray[np.int64]) -> None:
        self.folder = out.with_name(out.name + ".training")
        self.saved_step = 0  # number of steps in the saved state; 0: nothing is saved
        text = hashlib.sha256(ids.tobytes()).hexdigest()
        self.run = msgspec.json.encode({"config": config, "options": asdict(options), "text": text}).decode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror})") from error

    def load(self, model: ReferenceModel, optimizer: torch.optim.Optimizer) -> list[float]:
        """Restore the last saved state and return the losses of its last steps; return no losses if there is none."""
        path = self.folder / "state.pt"
        if not path.exists():
            return []
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            run, step, losses = state["run"], int(state["step"]), list(state["losses"])
        except Exception as error:  # PyTorch raises errors of many types
            raise OutputError(f"{path}: is damaged; remove {self.folder} to start again") from error
        if run != self.run:
            raise OutputError(
                f"{self.folder}: holds an unfinished run with another configuration, other options or another text; "
                "repeat the command of that run to resume it, or remove the folder"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        self.saved_step = step
        return losses

    def save(self, model: ReferenceModel, optimizer: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
        """Save the state after a number of steps, with the last losses; replace the old state in one atomic rename."""
        temporary = self.folder / "state.pt.new"
        state = {"run": self.run, "step": step, "losses": losses}
        torch.save({**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, temporary)
        os.replace(temporary, self.folder / "state.pt")  # noqa: PTH105
        self.saved_step = step


def _write_checkpoint(
    out: Path,
    model: ReferenceModel,
    tokenizer: Tokenizer,
    options: TrainOptions,
    result: TrainResult,
    force: bool,
) -> None:
    end = tokenizer.token_to_id(END_OF_TEXT)
    with atomic_folder(out, is_ours=_is_checkpoint, force=force) as folder:
        (folder / WEIGHTS).write_bytes(save(tensors_to_save(model)))
        tokenizer.save(str(folder / "tokenizer.json"))
        documents = {
            CONFIG: model.config,
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT},
            "generation_config.json": {"eos_token_id": end, "do_sample": False},
            "training.json": {"options": asdict(options), "result": asdict(result), "torch": str(torch.__version__)},
        }
        for name, document in documents.items():
            (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    shutil.rmtree(out.with_name(out.name + ".training"), ignore_errors=True)
