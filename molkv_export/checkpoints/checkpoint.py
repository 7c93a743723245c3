"""An open checkpoint: the reference model's parameters by name, whatever names and files they are published in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from molkv_bundle import CheckpointError, ConfigError, ModelConfig, MolkvError, file_sha256, shown
from molkv_export.checkpoints.weights import Weights, row_width
from molkv_export.modeling import Form, ReferenceModel

CONFIG = "config.json"
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_COMPARED_ROWS = 4096
_GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id")


class ParameterSource(NamedTuple):
    """What holds a parameter of the reference model in a checkpoint."""

    tensor: str  # the tensor's name in the files
    shape: tuple[int, ...]  # of that tensor
    first: int = 0  # number, in each row of the tensor, where the parameter's row begins


class Contents(NamedTuple):
    """What a reader has found in a folder."""

    config: ModelConfig
    form: Form
    weights: Weights
    source: Callable[[str, tuple[int, ...]], ParameterSource]
    """What holds a parameter with a name and a shape."""
    ignores: Callable[[str], bool]
    """Whether a tensor that is none of these may be there."""
    generation: Mapping[str, Any]
    """What config.json says of generating, in the words of generation_config.json."""


class Reader(Protocol):
    """A way in which models are published: a module of this folder, named in `molkv_export.families.FAMILIES`."""

    EXPECTED: str
    """What config.json says in it, for a message."""

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Tell from the fields of config.json whether a checkpoint was published like that."""

    def read_folder(self, folder: Path, fields: Mapping[str, Any]) -> Contents:
        """Open the weights of a checkpoint whose config.json has these fields.

        Raises:
            ConfigError: config.json has an impossible value, or one that this reader does not honour.
            CheckpointError: The weights are missing, damaged or unsafe, or do not fit config.json.
        """


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """An open checkpoint whose tensors are checked by name and shape, and by value when they are read."""

    def __init__(self, folder: Path, contents: Contents, make_model: Callable[[Any, Form], ReferenceModel]) -> None:
        """Find every parameter of the reference model.

        Args:
            folder: The checkpoint's folder.
            contents: What it holds.
            make_model: Makes the reference model of a configuration and a form, without values.

        Raises:
            CheckpointError: Weights and configuration do not fit together.
        """
        self.folder, self.config, self.form = folder, contents.config, contents.form
        self.make_model = make_model
        self.generation = contents.generation
        self.states = dict(contents.weights.states)
        """The files that determine the model, as they were just before they were read."""
        self._weights = contents.weights
        check_count(self._weights, "num_hidden_layers", self.config.num_hidden_layers)
        self._shapes = self._parameter_shapes()
        self._sources = {name: contents.source(name, shape) for name, shape in self._shapes.items()}
        self._check(contents.ignores)

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what a checkpoint holds by the reference model's names; a tied LM head is no tensor."""
        try:
            with torch.device("meta"):
                state = self.make_model(self.config, self.form).state_dict()
        except RuntimeError as error:
            raise CheckpointError(f"{self.folder / CONFIG}: no memory could hold such a model") from error
        tied = self.config.tie_word_embeddings
        return {name: tuple(tensor.shape) for name, tensor in state.items() if not (tied and name == LM_HEAD)}

    def _check(self, ignores: Callable[[str], bool]) -> None:
        expected = {source.tensor: source.shape for source in self._sources.values()}
        found, path = set(self._weights.names), self._weights.path
        for name in sorted(
            expected.keys() & found
        ):  # a quantized checkpoint has other tensors, too: first things first
            self._weights.check_dtype(name)
        if missing := sorted(expected.keys() - found):
            embedding = self._sources[EMBEDDING].tensor
            why = f"{CONFIG}, where tie_word_embeddings is false" if missing[0] == LM_HEAD else CONFIG
            raise CheckpointError(
                f"{path}: tensor {missing[0]!r} is missing ({len(missing)} in all), "
                f"expected {list(expected[missing[0]])} by {why}"
                + (_other_prefix(embedding, found) if embedding in missing else "")
            )
        extra = sorted(found - expected.keys())
        if self.config.tie_word_embeddings and LM_HEAD in extra:
            self._check_tied()
            extra.remove(LM_HEAD)
        extra = [name for name in extra if not ignores(name)]
        if extra:
            raise CheckpointError(
                f"{path}: tensor {extra[0]!r} is one that this {CONFIG} has no place for ({len(extra)} in all)"
            )
        for name, shape in expected.items():
            self._weights.check(name, shape, CONFIG)

    def _check_tied(self) -> None:
        """Refuse a second copy of the embedding that is not one."""
        source = self._sources[EMBEDDING]
        for name in (source.tensor, LM_HEAD):
            self._weights.check(name, source.shape, CONFIG)
        width = row_width(source.shape)
        for start in range(0, source.shape[0], _COMPARED_ROWS):
            stop = min(source.shape[0], start + _COMPARED_ROWS)
            embedding, head = (self._weights.read(name, start, stop, 0, width) for name in (source.tensor, LM_HEAD))
            if not torch.equal(embedding, head):
                raise CheckpointError(
                    f"{self._weights.path_of(LM_HEAD)}: tensor {LM_HEAD!r} is not {source.tensor!r}, expected the same "
                    f"numbers by {CONFIG}, where tie_word_embeddings is true"
                )

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters, as the reference model has them."""
        return list(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter."""
        return self._shapes[name]

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows start to stop (default: all) of a parameter as float32; errors as in `stored`."""
        return self.stored(name, start, stop).float()

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows start to stop (default: all) of a parameter in the dtype that the file has.

        Raises:
            CheckpointError: A value is NaN or infinite, or the file cannot be read.
        """
        source, shape = self._sources[name], self._shapes[name]
        stop = shape[0] if stop is None else stop
        return self._weights.read(source.tensor, start, stop, source.first, row_width(shape)).reshape(-1, *shape[1:])

    def stored_together(self, names: Sequence[str], start: int, stop: int) -> Iterator[torch.Tensor]:
        """Read the same rows of several parameters, as `stored` does; what one tensor holds of them in one read."""
        held, held_rows = "", torch.empty(0)
        for name in names:
            source, shape = self._sources[name], self._shapes[name]
            if row_width(shape) == row_width(source.shape):
                yield self.stored(name, start, stop)
                continue
            if source.tensor != held:
                held = source.tensor
                held_rows = self._weights.read(held, start, stop, 0, row_width(source.shape)).view(stop - start, -1)
            yield held_rows[:, source.first : source.first + row_width(shape)].reshape(-1, *shape[1:])

    def row_bytes(self, name: str) -> int:
        """Return the bytes of a row of the tensor that holds a parameter, and maybe others."""
        return self._weights.entry(self._sources[name].tensor).row_bytes

    def reads_as(self, other: Checkpoint) -> bool:
        """Tell whether another one has the same model in the same places, as far as can be told without the values."""
        return all(
            mine == theirs
            for mine, theirs in (
                (self.config, other.config),
                (self.form, other.form),
                (self.generation, other.generation),
                (self._sources, other._sources),
                (self._weights.places, other._weights.places),
            )
        )

    @property
    def files(self) -> list[Path]:
        """The files that determine the model."""
        return [self.folder / CONFIG, *self._weights.states]

    def sha256(self, advance: Callable[[int], object] = lambda _: None) -> dict[str, str]:
        """Hash the files that determine the model; `advance` is told the number of bytes after each piece."""
        config = self.folder / CONFIG
        try:
            hashes = {config: file_sha256(config, advance), **self._weights.sha256(advance)}
        except OSError as error:
            raise CheckpointError(f"{error.filename or self.folder}: cannot be read ({error.strerror})") from error
        return {path.name: digest for path, digest in hashes.items()}

    def close(self) -> None:
        """Close the files."""
        self._weights.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def check_count(weights: Weights, field: str, least: int) -> None:
    """Refuse an impossible number in config.json before a model is made of it.

    Raises:
        CheckpointError: There are fewer tensors than `least`, which the field asks for.
    """
    if least > len(weights.names):
        raise CheckpointError(
            f"{weights.path}: holds {len(weights.names)} tensors, too few for {field} of {CONFIG}, which asks for "
            f"{least} at least"
        )


def generation_fields(fields: Mapping[str, Any], vocab_size: int, path: Path) -> dict[str, Any]:
    """Return what a config.json (the file `path`) says of generating, in the words of generation_config.json.

    Raises:
        ConfigError: A value is no token id.
    """
    found = {name: fields[name] for name in _GENERATION if fields.get(name) is not None}
    for name, value in found.items():
        check_token_ids(name, value, -1 if name == "pad_token_id" else 0, vocab_size, path, ConfigError)
    return found


def without_generation(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json that are about the model."""
    return {name: value for name, value in fields.items() if name not in _GENERATION}


def check_token_ids(name: str, value: object, least: int, vocab_size: int, path: Path, error: type[MolkvError]) -> None:
    """Check a field that holds a token id, or a list of some.

    Raises:
        error: It holds something else than whole numbers from `least` to `vocab_size` - 1, or nothing.
    """
    ids = value if isinstance(value, list) else [value]
    if not ids or any(type(token) is not int or not least <= token < vocab_size for token in ids):
        raise error(f"{path}: {name} is {shown(value)}, expected token ids from {least} to {vocab_size - 1}, or null")


def _other_prefix(expected: str, found: Collection[str]) -> str:
    """Say, for an error, that names begin otherwise than expected; empty if they do not.

    Args:
        expected: The name of a tensor that every model has and this checkpoint does not, of three parts or more.
        found: The names of all tensors.
    """
    for tail in _tails(expected):
        for name in sorted(found):
            if name != tail and not name.endswith(f".{tail}"):
                continue
            theirs, ours = name.removesuffix(tail), expected.removesuffix(tail)
            who = "every tensor begins" if all(other.startswith(theirs) for other in found) else "tensors begin"
            if not theirs:
                return f"; names lack {ours!r} at their beginning"
            return f"; {who} with {theirs!r}, expected {repr(ours) if ours else 'none'}"
    return ""


def _tails(name: str) -> Iterable[str]:
    """Return a name without its first parts, longest first; at least two parts are left."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1))
