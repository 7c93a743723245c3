"""The options of the commands that generate text, `run` and `chat`, and the output of a text while it is generated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from molkv_bundle import Bundle
from molkv_export.commands.options import provider_options, renamed, sampling_options
from molkv_export.terminal import download_progress, print_line
from molkv_runtime import Generator, Options, Sampling, Target, describe_placements, resolve

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_UNUSED_WHEN_GREEDY = ("top_k", "top_p", "min_p", "seed")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationOptions:
    """The values of the options that `generation_options` adds."""

    max_new_tokens: int
    stop: tuple[str, ...]
    lookup: int
    sampling: dict[str, Any]
    profile: str | None
    target: Target
    use_mmap: bool
    no_checksums: bool
    threads: int | None

    def open(self, bundle: Path | str, notes: Console) -> tuple[Generator, Options]:
        """Load a bundle, and return it with the options for its methods. Report the provider and the sampling.

        Raises:
            ArgumentError: The value of an option is impossible.
            BundleError, ProviderError: See `Generator`.
        """
        Sampling(**self.sampling)  # raises on an impossible value, before the bundle is loaded
        with download_progress(notes) as advance, renamed(store_access="use_mmap"):
            profiles = resolve(self.target.provider).profiles
            generator = Generator(
                Bundle(bundle, profiles=profiles, profile=self.profile or "", advance=advance),
                target=self.target._replace(threads=self.threads),
                store_access="mmap" if self.use_mmap else "pread",
                verify_checksums=not self.no_checksums,
            )
        is_shown = _LOG.isEnabledFor(logging.INFO)  # --verbose shows the placements anyway
        if self.target.provider != "cpu" and not is_shown:
            print_line(notes, f"{generator.bundle.profile}: {describe_placements(generator.placements)}")
        sampling = replace(generator.default_sampling, **self.sampling)
        options = Options(max_new_tokens=self.max_new_tokens, sampling=sampling, stop=self.stop, lookup=self.lookup)
        generator.settings(**options)
        _report_sampling(sampling, self.sampling, generator, notes)
        return generator, options


def generation_options(max_new_tokens: int) -> _Decorator:
    """Return a decorator that adds options. The command gets the argument `generation`, a `GenerationOptions`.

    Args:
        max_new_tokens: Default of --max-new-tokens.
    """
    own = [
        click.option(
            "--max-new-tokens",
            type=int,
            default=max_new_tokens,
            show_default=True,
            help="Largest number of tokens to generate for a text.",
        ),
        click.option(
            "--stop",
            metavar="TEXT",
            multiple=True,
            help="Text that ends the generation. The result ends before this text. The option can be repeated. A line "
            "break is $'\\n' in bash and zsh.",
        ),
        click.option(
            "--lookup",
            type=int,
            default=0,
            show_default=True,
            metavar="K",
            help="Propose up to K tokens that followed the same words earlier in the text, and check them in one call. "
            "This is faster for texts that repeat themselves. 0 is off. Profile cpu only.",
        ),
    ]
    store = [
        click.option("--mmap", "use_mmap", is_flag=True, help="Read the expert store through a memory map."),
        click.option("--no-checksums", is_flag=True, help="Do not check the checksums of the records."),
        click.option("--threads", type=int, help="Number of threads of one operator. [default: one per physical core]"),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def gathered(**arguments: Any) -> Any:
            given = {field.name: arguments.pop(field.name) for field in fields(GenerationOptions)}
            return command(generation=GenerationOptions(**given), **arguments)

        decorators: list[_Decorator] = [*own, sampling_options, provider_options(), *store]
        decorated: Callable[..., Any] = gathered
        for add in reversed(decorators):
            decorated = add(decorated)
        return decorated

    return decorate


def _report_sampling(chosen: Sampling, given: dict[str, Any], generator: Generator, notes: Console) -> None:
    """Log each value of the sampling with its origin, and print a note about given options that have no effect."""
    from_bundle = generator.bundle.manifest.generation.sampling.__struct_fields__
    values = []
    for name, value in asdict(chosen).items():
        origin = "command line" if name in given else "bundle" if name in from_bundle else "default"
        values.append(f"{name} {_as_text(value)} ({origin})")
    _LOG.info("sampling: %s", ", ".join(values))
    off = Sampling()
    unused = [
        f"--{name.replace('_', '-')}"
        for name in _UNUSED_WHEN_GREEDY
        if given.get(name, getattr(off, name)) != getattr(off, name)
    ]
    if unused and chosen.temperature == 0:
        print_line(
            notes,
            f"note: at temperature 0 (greedy text) these options have no effect: {', '.join(unused)}; "
            "to sample, add an option such as --temperature 0.8",
        )


def _as_text(value: float | dict[int, float]) -> str:
    """Return a field of `Sampling` in the form of the command line's options."""
    if isinstance(value, dict):
        return " ".join(f"{token}={bias:g}" for token, bias in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_pieces(pieces: Iterable[str], notes: Console) -> None:
    """Print the pieces of a text, then the notes and log messages of the generation.

    The text ends with a line break even if an error interrupts it.
    """
    captured = notes.capture()
    try:
        with captured:
            try:
                for piece in pieces:
                    click.echo(piece, nl=False)
            finally:
                click.echo()
    finally:
        if messages := captured.get():
            print_line(notes, messages.rstrip("\n"))
