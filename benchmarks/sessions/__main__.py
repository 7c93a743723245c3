"""`make bench-sessions`: print the tables of docs/performance.md, "Conversations and text"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from benchmarks.sessions.conversation import conversations, saved_sessions
from benchmarks.sessions.lookup import (
    CountingGraph,
    ScriptedGraph,
    copied,
    cost_of_calls,
    costs_of_options,
    generated,
)
from benchmarks.sessions.models import FORMATS, make_bundles
from benchmarks.sessions.texts import texts
from benchmarks.store.model import model_config
from molkv_export import export
from molkv_export.commands.options import PATH
from molkv_runtime import Generator, Target

CHECKPOINT = Path("examples/stdlib-mini")


@click.command()
@click.option("--folder", type=PATH, required=True, help="Folder for the models, which need 7 GB.")
@click.option("--vocab-size", default=50_304, show_default=True, help="Vocabulary of the model of the 160M class.")
@click.option("--length", default=1000, show_default=True, help="Tokens of a conversation.")
@click.option("--runs", default=5, show_default=True, help="Number of runs of each measurement.")
@click.option("--threads", default=2, show_default=True, help="Threads of ONNX Runtime.")
@click.option("--texts", "count", default=8, show_default=True, help="Number of texts of each kind.")
def main(folder: Path, vocab_size: int, length: int, runs: int, threads: int, count: int) -> None:
    """Measure prefix reuse, saved sessions, prompt lookup and the options of text generation."""
    config = msgspec.structs.replace(model_config(1), vocab_size=vocab_size)
    bundles = make_bundles(config, folder)
    weights = {name: bundles[name] for name in FORMATS if "KV" not in name}
    caches = {name: bundles[name] for name in FORMATS if name.startswith("float32")}
    mini = folder / "stdlib-mini"
    if not mini.exists():
        export(CHECKPOINT, mini)
    model = Generator(mini, target=Target(threads=1), prefix_cache_bytes=0)
    counted = CountingGraph(model.graph)
    generator = Generator(mini, graph=counted, store=model.store, prefix_cache_bytes=0)
    graph = ScriptedGraph(generator.config.vocab_size)
    calls = CountingGraph(graph)
    scripted = Generator(mini, graph=calls, store=model.store, prefix_cache_bytes=0)
    found = texts(generator.tokenizer, count)
    click.echo(f"{threads} threads (stdlib-mini: 1 thread), vocabulary {vocab_size:,}, medians of {runs} runs in turns")
    tables: dict[str, Callable[[], str]] = {
        "first token of a conversation": lambda: conversations(weights, length, runs, threads),
        "saved sessions": lambda: saved_sessions(caches, length, runs, threads),
        "prompt lookup, a model that writes the text": lambda: copied(scripted, graph, calls, found),
        "prompt lookup, stdlib-mini": lambda: generated(generator, counted, found, runs),
        "a call of k + 1 positions / a decode step": lambda: cost_of_calls(weights, length // 2, 4 * runs, threads),
        "options": lambda: costs_of_options(generator, scripted, graph, found, 4 * runs),
    }
    for title, make in tables.items():
        click.echo(f"\n**{title}**\n\n{make()}", nl=False)


main()
