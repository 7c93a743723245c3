"""Training lowers the loss, can be resumed, and reads the expected text."""

from __future__ import annotations

import io
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from molkv_bundle import MolkvConfig, OutputError, RequestError
from molkv_export.corpus import Corpus, encode, standard_library, train_tokenizer
from molkv_export.families import open_checkpoint
from molkv_export.training import loop
from molkv_export.training.interrupts import hold_interrupts
from molkv_export.training.loop import TrainOptions, learning_rate_at, train

CONFIG = MolkvConfig(
    model_type="molkv",
    vocab_size=300,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=32,
    num_experts=2,
    expert_key_size=8,
    expert_window=4,
)
TEXT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n" * 12
CORPUS = Corpus([TEXT] * 3, [TEXT])
OPTIONS = TrainOptions(steps=30, batch_size=4, sequence_length=16, warmup_steps=5)


def test_training_lowers_the_loss_and_writes_a_sound_checkpoint(tmp_path: Path) -> None:
    result = train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS)
    assert result.validation_loss < np.log(300) - 1
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.form == "training"
        assert checkpoint.config == CONFIG
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(CONFIG, tmp_path / "straight", OPTIONS, corpus=CORPUS)
    monkeypatch.setattr(loop, "SAVE_EVERY_STEPS", 10)

    def interrupted(step: int, options: TrainOptions) -> float:
        if step == 17:
            raise KeyboardInterrupt
        return learning_rate_at(step, options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, tmp_path / "resumed", OPTIONS, corpus=CORPUS)
    assert not (tmp_path / "resumed").exists()

    with pytest.raises(
        OutputError, match="holds an unfinished run with another configuration, other options or another text"
    ):
        train(CONFIG, tmp_path / "resumed", TrainOptions(steps=31, batch_size=4, sequence_length=16), corpus=CORPUS)

    steps: dict[int, float] = {}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate_at", lambda step, o: steps.setdefault(step, learning_rate_at(step, o)))
        assert train(CONFIG, tmp_path / "resumed", OPTIONS, corpus=CORPUS) == expected
    assert list(steps) == list(range(10, 30))
    straight, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_saves_its_state(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(CONFIG, tmp_path / "straight", OPTIONS, corpus=CORPUS)
    original, steps = loop.training_batch, []

    def signalled(ids: np.ndarray, options: TrainOptions, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(step)
        if step == 17:
            os.kill(os.getpid(), number)
        return original(ids, options, step)

    monkeypatch.setattr(loop, "training_batch", signalled)
    handler = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            train(CONFIG, tmp_path / "resumed", OPTIONS, corpus=CORPUS)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, handler)
    folder = tmp_path / "resumed.training"
    assert caught.value.__notes__ == [
        f"the state after step 18 is saved in {folder}; the same command continues from there"
    ]
    train(CONFIG, tmp_path / "resumed", OPTIONS, corpus=CORPUS)
    assert steps == list(range(30))
    straight, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def _signalled_while_held(count: int) -> list[int]:
    """Send SIGINT to this process while it is held. Return the signals after which the block went on."""
    passed: list[int] = []

    def hold() -> None:
        with hold_interrupts():
            for number in range(count):
                os.kill(os.getpid(), signal.SIGINT)
                passed.append(number)

    with pytest.raises(KeyboardInterrupt):
        hold()
    return passed


def test_a_second_signal_does_not_wait() -> None:
    assert _signalled_while_held(2) == [0]


def test_a_signal_is_raised_after_a_block_that_does_not_stop() -> None:
    assert _signalled_while_held(1) == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_before_the_first_saved_state_promises_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "learning_rate_at", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS)
    assert not hasattr(caught.value, "__notes__")


def test_an_interrupt_in_the_validation_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> tuple[float, float]:
        raise KeyboardInterrupt

    expected = train(CONFIG, tmp_path / "straight", OPTIONS, corpus=CORPUS)
    original, steps = loop.training_batch, []
    monkeypatch.setattr(
        loop, "training_batch", lambda ids, options, step: steps.append(step) or original(ids, options, step)
    )
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validation_losses", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS)
    assert "after step 30 is saved" in caught.value.__notes__[0]
    assert train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS) == expected
    assert steps == list(range(30))


def test_progress_is_shown_until_the_end(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=120)
    train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS, console=console)
    windows = re.findall(r"validation .* (\d+)/(\d+)", shown.getvalue())
    assert re.search(r"training .* 30/30", shown.getvalue())
    assert windows
    assert windows[-1][0] == windows[-1][1]


def test_a_damaged_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "state.pt").write_bytes(b"nothing")
    with pytest.raises(OutputError, match=r"state.pt: is damaged; remove .*model.training to start again"):
        train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS)


def test_force_replaces_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    short = TrainOptions(steps=2, batch_size=1, sequence_length=8)
    for _ in range(2):
        train(CONFIG, tmp_path / "model", short, corpus=CORPUS, force=True)
        assert not (tmp_path / "model" / ".DS_Store").exists()
        (tmp_path / "model" / ".DS_Store").write_text("x")  # a file of the system
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files that molkv-export did not write"):
        train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS, force=True)


def test_the_learning_rate_warms_up_and_decays_to_a_tenth() -> None:
    options = TrainOptions(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(step, options) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)


def test_the_standard_library_is_split_by_whole_modules() -> None:
    corpus = standard_library()
    assert 0.02 < len(corpus.validation) / len(corpus.train) < 0.12
    assert not set(corpus.train) & set(corpus.validation) - {""}
    assert sum(map(len, corpus.train)) > 5_000_000


def test_texts_are_encoded_without_loss_and_end_with_the_end_token() -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    ids = encode(tokenizer, ["a = 'ö'\n", "b"])
    assert (ids == 0).sum() == 2
    assert ids[-1] == 0
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=True) == "a = 'ö'\nb"


def test_impossible_runs_are_refused_before_they_start(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="sequence_length: found 64, expected at most 32 "):
        train(CONFIG, tmp_path / "model", TrainOptions(sequence_length=64), corpus=CORPUS)
    for name, value in (("steps", 0), ("learning_rate", float("nan")), ("seed", -1), ("weight_decay", -0.1)):
        with pytest.raises(RequestError, match=f"{name}: found {value}, expected"):
            TrainOptions(**{name: value})
    with pytest.raises(RequestError, match=r"learning_rate: found inf, expected more than 0 and less than 2\^63"):
        TrainOptions(learning_rate=float("inf"))
    with pytest.raises(RequestError, match=r"seed: found 9223372036854775808, expected 0 or more and less than 2\^63"):
        TrainOptions(seed=2**63)
    with pytest.raises(RequestError, match="expected less than the number of tokens in the training text"):
        train(CONFIG, tmp_path / "model", OPTIONS, corpus=Corpus([TEXT], ["a"]))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        train(CONFIG, tmp_path / "model", OPTIONS, corpus=CORPUS)
