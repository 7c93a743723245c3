"""Options, types of option values, and printing of results, for several commands."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from molkv_bundle import PROFILES, ArgumentError, ProviderError, is_remote
from molkv_export.terminal import console, log_to
from molkv_runtime import PRESETS, Sampling, Target, load_provider_library, resolve

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class _Path(click.Path):
    """A path on this machine. A URL is refused: as a path, it would be a folder such as `s3:`."""

    expected = "a path on this machine"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if _SCHEME.match(str(value)):
            self.fail(f"found {str(value)!r}, expected {self.expected}", param, ctx)
        return super().convert(value, param, ctx)


class _Location(_Path):
    """A path, or a URL such as hf://owner/name, which remains a text, because a Path would drop one of its slashes."""

    expected = "a path, or a URL that begins with hf://, s3://, gs:// or file://"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_remote(value) else super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
LOCATION = _Location(path_type=Path)

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def byte_size(text: str) -> int:
    """Read a size such as 500MB, 1GiB or 1048576.

    Raises:
        click.BadParameter: The text is not a size.
    """
    match = re.fullmatch(r"(\d+)\s*([kmg]?i?)b?", text.strip().lower())
    if not match or match[2] not in _UNITS:
        raise click.BadParameter(f"found {text!r}, expected a size: a number of bytes, or text such as 500MB or 1GiB")
    return int(match[1]) * _UNITS[match[2]]


def counts(text: str) -> tuple[int, ...]:
    """Read a list of numbers that are separated by commas, such as 64,256.

    Raises:
        click.BadParameter: The text is not such a list.
    """
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise click.BadParameter(f"found {text!r}, expected a list of numbers such as 64,256")
    return tuple(map(int, text.split(",")))


def assignment(text: str) -> tuple[str, str]:
    """Read a name and a value, such as MLComputeUnits=ALL.

    Raises:
        click.BadParameter: The text has no name or no equals sign.
    """
    name, is_one, content = text.partition("=")
    if not name or not is_one:
        raise click.BadParameter(f"found {text!r}, expected NAME=VALUE such as MLComputeUnits=ALL")
    return name, content


def _bias(text: str) -> tuple[int, float]:
    """Read a token id and a number, such as 42=-5.

    Raises:
        click.BadParameter: The text is not of this form.
    """
    token, _, number = text.partition("=")
    try:
        return int(token), float(number)
    except ValueError as error:
        raise click.BadParameter(f"found {text!r}, expected a token id and a number such as 42=-5") from error


def _one_each(
    _context: click.Context, _parameter: click.Parameter, biases: tuple[tuple[int, float], ...]
) -> dict[int, float] | None:
    """Return the biases by token id, or None if there are none.

    Raises:
        click.BadParameter: A token id has several biases.
    """
    found = dict(biases)
    for token in found:
        if [other for other, _ in biases].count(token) > 1:
            raise click.BadParameter(f"found several numbers for token id {token}, expected one")
    return found or None


def print_json(value: Any) -> None:
    """Print a result as one JSON document on standard output."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1))


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON document instead of text."
)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --quiet and --verbose to a command, and convert an ArgumentError to an error of click that names the option.

    The command gets the argument `notes`: the console on standard error for progress and notes. This console also
    prints log messages.
    """

    @click.option("-q", "--quiet", is_flag=True, help="Show only errors on standard error: no progress and no notes.")
    @click.option(
        "-v", "--verbose", is_flag=True, help="Show details on standard error, such as times and numbers of threads."
    )
    @wraps(command)
    def prepared(quiet: bool, verbose: bool, **arguments: Any) -> Any:
        if quiet and verbose:
            raise click.UsageError("found --quiet and --verbose, expected at most one of them")
        notes = console(stderr=True, quiet=quiet)
        try:
            with log_to(notes, logging.INFO if verbose else logging.WARNING):
                return command(notes=notes, **arguments)
        except ArgumentError as error:
            if (parameter := _parameter(error.argument)) is None:
                raise
            raise click.BadParameter(f"found {error.found}, expected {error.expected}", param=parameter) from error
        except KeyboardInterrupt as error:  # click would print an empty line for it
            raise click.Abort from error

    return prepared


@contextmanager
def renamed(**options: str) -> Iterator[None]:
    """Rename the arguments in an ArgumentError of the block to the options that set them.

    Args:
        options: Name of the option's parameter, by the name of the argument.
    """
    try:
        yield
    except ArgumentError as error:
        error.argument = options.get(error.argument, error.argument)
        raise


def _parameter(argument: str) -> click.Parameter | None:
    """Return the running command's parameter that sets the argument of a function; None if there is none."""
    option = "--" + argument.replace("_", "-")
    parameters = click.get_current_context().command.params
    return next((each for each in parameters if argument == each.name or option in each.opts), None)


def provider_options(*others: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds options. The command gets the arguments `profile` and `target`, a `Target`.

    Args:
        others: Names that --provider takes in addition to those of presets.
    """
    options = [
        click.option(
            "--profile",
            type=click.Choice(PROFILES),
            help="Profile of the graphs to run. [default: the best for the provider]",
        ),
        click.option(
            "--provider",
            metavar="NAME",
            shell_complete=lambda _ctx, _param, start: [name for name in PRESETS if name.startswith(start)],
            default="cpu",
            show_default=True,
            help=f"Execution provider of ONNX Runtime: {', '.join([*PRESETS, *others])}. `molkv-export providers` "
            "shows which of them this machine has.",
        ),
        click.option(
            "--provider-library",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Plug-in of ONNX Runtime, a shared library that contains the provider. [default: the library of an "
            "installed package]",
        ),
        click.option(
            "--provider-option",
            "provider_options",
            type=assignment,
            metavar="NAME=VALUE",
            multiple=True,
            help="Option of the provider, such as MLComputeUnits=ALL; it replaces our default. "
            "--provider-option can be repeated.",
        ),
        click.option("--require-provider", is_flag=True, help="Fail if any node runs on another provider."),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def gathered(
            provider: str,
            provider_library: Path | None,
            provider_options: tuple[tuple[str, str], ...],
            require_provider: bool,
            **arguments: Any,
        ) -> Any:
            if provider_library is not None:
                provider = _from_library(provider_library, provider)
            elif provider not in others:
                _check_name(provider)
            return command(target=Target(provider, dict(provider_options), require_provider), **arguments)

        decorated: Callable[..., Any] = gathered
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _check_name(provider: str) -> None:
    """Check that a provider exists on this machine.

    Raises:
        click.BadParameter: The name is unknown.
        ProviderError: The provider is absent.
    """
    try:
        resolve(provider)
    except ProviderError as error:
        if provider in PRESETS:
            raise
        raise click.BadParameter(
            f"{error}; other providers need --provider-library", param_hint="'--provider'"
        ) from None


def _from_library(library: Path, provider: str) -> str:
    """Load a plug-in. Return the preset of the provider that the user chose, or else of the plug-in's only provider."""
    is_chosen = click.get_current_context().get_parameter_source("provider") is not ParameterSource.DEFAULT
    names = load_provider_library(library, provider if is_chosen else "")
    if len(names) > 1:
        raise click.UsageError(f"{library} has several providers; choose one with --provider: {', '.join(names)}")
    return names[0]


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of sampling; the command gets the argument `sampling`, a dict of the given options."""
    names = [each.name for each in fields(Sampling)]

    @wraps(command)
    def gathered(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in names}
        return command(sampling={name: value for name, value in given.items() if value is not None}, **arguments)

    unset = "[default: the bundle's]"
    options = [
        click.option(
            "--temperature", type=float, help=f"Temperature of sampling; 0 takes the likeliest token (greedy). {unset}"
        ),
        click.option("--top-k", type=int, help=f"Draw from the k likeliest tokens; 0 is off. {unset}"),
        click.option(
            "--top-p",
            type=float,
            help=f"Draw from the likeliest tokens that together have this probability; 1 is off. {unset}",
        ),
        click.option(
            "--min-p",
            type=float,
            help=f"Drop tokens whose probability is below this share of the largest probability; 0 is off. {unset}",
        ),
        click.option(
            "--repetition-penalty",
            type=float,
            help=f"Factor that makes tokens of the prompt and the generated text less likely; 1 is off. {unset}",
        ),
        click.option(
            "--presence-penalty",
            type=float,
            help="Number to subtract from the logits of tokens in the generated text. [default: 0]",
        ),
        click.option(
            "--frequency-penalty",
            type=float,
            help="Number to subtract from the logit of a token for each time that the token is in the generated text. "
            "[default: 0]",
        ),
        click.option(
            "--logit-bias",
            type=_bias,
            callback=_one_each,
            metavar="ID=NUMBER",
            multiple=True,
            help="Number to add to the logit of a token id, such as 42=-5. The option can be repeated.",
        ),
        click.option("--seed", type=int, help="Seed of the random draws. [default: 0]"),
    ]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered
