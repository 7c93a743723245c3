"""An open checkpoint. Its tensors have the names of the reference model's parameters, not those in the files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from molkv_bundle import (
    CheckpointError,
    ConfigError,
    ModelConfig,
    MolkvError,
    RemoteFile,
    file_sha256,
    shown,
)
from molkv_export.checkpoints.files import CONFIG, FileState
from molkv_export.checkpoints.remote import Mirror
from molkv_export.checkpoints.weights import Weights, row_width
from molkv_export.modeling import Form, ReferenceModel

LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_COMPARED_ROWS = 4096
_GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id")


class ParameterSource(NamedTuple):
    """The place of one parameter of the reference model in a checkpoint's files."""

    tensor: str  # the tensor's name in the files
    shape: tuple[int, ...]  # the tensor's shape in the files
    first: int = 0  # the index, in each row of the tensor, at which the parameter's row begins


class Contents(NamedTuple):
    """The content of a checkpoint folder, as a `Reader` returns it."""

    config: ModelConfig
    form: Form
    weights: Weights
    source: Callable[[str, tuple[int, ...]], ParameterSource]
    """A function from a parameter's name and shape to the parameter's place."""
    ignores: Callable[[str], bool]
    """A function from the name of a tensor that is no parameter to whether this tensor may be ignored."""
    generation: Mapping[str, Any]
    """Fields of config.json about text generation, named as in generation_config.json."""


class Reader(Protocol):
    """The reader of one published format: a module of this folder, listed in `molkv_export.families.FAMILIES`."""

    EXPECTED: str
    """Text for an error message that names the fields of config.json by which the format is recognized."""

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint whose config.json has these fields is in this format."""

    def read_folder(self, folder: Path, fields: Mapping[str, Any], open_weights: Callable[[], Weights]) -> Contents:
        """Open the weights of a checkpoint whose config.json has these fields, after checking the fields.

        Raises:
            ConfigError: config.json has an impossible value, or a value that this reader does not support.
            CheckpointError: The weights are missing, damaged or unsafe, or do not fit config.json.
        """


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """An open checkpoint. Opening checks the names and shapes of tensors; reading a tensor checks its values."""

    def __init__(
        self,
        folder: Path,
        contents: Contents,
        make_model: Callable[[Any, Form], ReferenceModel],
        mirror: Mirror | None = None,
    ) -> None:
        """Find every parameter of the reference model in the checkpoint's files.

        Args:
            folder: The checkpoint's folder.
            contents: The folder's content, from a `Reader`.
            make_model: A function that creates the reference model, without trained values, from a configuration and a
                form.
            mirror: The remote folder that `folder` is a copy of, if it is one. It is closed with this object.

        Raises:
            CheckpointError: Weights and configuration do not fit together.
        """
        self.folder, self.config, self.form = folder, contents.config, contents.form
        self.make_model = make_model
        self.mirror = mirror
        self.generation = contents.generation
        self.states = dict(contents.weights.states)
        """The files that determine the model, each with its state just before it was read."""
        self._weights = contents.weights
        check_count(self._weights, "num_hidden_layers", self.config.num_hidden_layers)
        self._shapes = self._parameter_shapes()
        self._sources = {name: contents.source(name, shape) for name, shape in self._shapes.items()}
        self._check(contents.ignores)

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the reference model's parameters by name, without a tied LM head."""
        try:
            with torch.device("meta"):
                state = self.make_model(self.config, self.form).state_dict()
        except RuntimeError as error:
            raise CheckpointError(f"{self.folder / CONFIG}: the model is too large for any memory") from error
        tied = self.config.tie_word_embeddings
        return {name: tuple(tensor.shape) for name, tensor in state.items() if not (tied and name == LM_HEAD)}

    def _check(self, ignores: Callable[[str], bool]) -> None:
        expected = {source.tensor: source.shape for source in self._sources.values()}
        found, path = set(self._weights.names), self._weights.path
        # Dtypes are checked first: in a quantized checkpoint the dtype is the cause, and names differ as a consequence.
        for name in sorted(expected.keys() & found):
            self._weights.check_dtype(name)
        if missing := sorted(expected.keys() - found):
            embedding = self._sources[EMBEDDING].tensor
            why = f"{CONFIG}, where tie_word_embeddings is false" if missing[0] == LM_HEAD else CONFIG
            raise CheckpointError(
                f"{path}: tensor {missing[0]!r} is missing (total: {len(missing)}), "
                f"expected shape {list(expected[missing[0]])} by {why}"
                + (_other_prefix(embedding, found) if embedding in missing else "")
            )
        extra = sorted(found - expected.keys())
        if self.config.tie_word_embeddings and LM_HEAD in extra:
            self._check_tied()
            extra.remove(LM_HEAD)
        extra = [name for name in extra if not ignores(name)]
        if extra:
            raise CheckpointError(
                f"{path}: tensor {extra[0]!r} is not part of the model that {CONFIG} describes (total: {len(extra)})"
            )
        for name, shape in expected.items():
            self._weights.check(name, shape, CONFIG)

    def _check_tied(self) -> None:
        """Refuse an LM head whose values differ from those of the embedding to which config.json ties it."""
        source = self._sources[EMBEDDING]
        for name in (source.tensor, LM_HEAD):
            self._weights.check(name, source.shape, CONFIG)
        width = row_width(source.shape)
        for start in range(0, source.shape[0], _COMPARED_ROWS):
            stop = min(source.shape[0], start + _COMPARED_ROWS)
            embedding, head = (self._weights.read(name, start, stop, 0, width) for name in (source.tensor, LM_HEAD))
            if not torch.equal(embedding, head):
                raise CheckpointError(
                    f"{self._weights.path_of(LM_HEAD)}: tensor {LM_HEAD!r} differs from {source.tensor!r}, expected "
                    f"equal values by {CONFIG}, where tie_word_embeddings is true"
                )

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters in the reference model."""
        return list(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter."""
        return self._shapes[name]

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows start to stop (default: all) of a parameter as float32; raise the same errors as `stored`."""
        return self.stored(name, start, stop).float()

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows start to stop (default: all) of a parameter in the file's dtype.

        Raises:
            CheckpointError: A value is NaN or infinite, or the file cannot be read.
        """
        source, shape = self._sources[name], self._shapes[name]
        stop = shape[0] if stop is None else stop
        return self._weights.read(source.tensor, start, stop, source.first, row_width(shape)).reshape(-1, *shape[1:])

    def stored_together(self, names: Sequence[str], start: int, stop: int) -> Iterator[torch.Tensor]:
        """Read the same rows of several parameters, as `stored` does.

        If one tensor holds several parameters that follow each other in `names`, the tensor is read only once.
        """
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
        """Return the size in bytes of a row of the tensor that holds a parameter, and possibly other parameters."""
        return self._weights.entry(self._sources[name].tensor).row_bytes

    def reads_as(self, other: Checkpoint) -> bool:
        """Return whether another checkpoint has the same model in the same places of the same files.

        Values are not compared.
        """
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
        """Return the SHA-256, by name, of each file that determines the model.

        `advance` is called with the size in bytes of each hashed piece.
        """
        config = self.folder / CONFIG
        try:
            hashes = {config: file_sha256(config, advance), **self._weights.sha256(advance)}
        except OSError as error:
            raise CheckpointError(f"{error.filename or self.folder}: cannot be read ({error.strerror})") from error
        return {path.name: digest for path, digest in hashes.items()}

    @property
    def place(self) -> str:
        """The absolute path of the folder, or the URL of a remote checkpoint, at which other processes find it."""
        return str(self.folder.absolute()) if self.mirror is None else self.mirror.url

    @property
    def versions(self) -> dict[str, FileState | RemoteFile | None]:
        """States of the files that determine the model, by place. If they are equal, so are the files."""
        if self.mirror is not None:
            return {**self.mirror.versions}
        return {str(path.absolute()): state for path, state in self.states.items()}

    def named(self, text: str) -> str:
        """Return a message in which the folder of a remote checkpoint has the name that the user gave."""
        return text if self.mirror is None else self.mirror.named(text)

    def close(self) -> None:
        """Close the files."""
        self._weights.close()
        if self.mirror is not None:
            self.mirror.close()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.close()
        if self.mirror is not None:
            self.mirror.rename_in(error)


def check_count(weights: Weights, field: str, least: int) -> None:
    """Refuse an impossible count in config.json before a model of that size is created.

    Raises:
        CheckpointError: There are fewer than `least` tensors, the number that `field` requires.
    """
    if least > len(weights.names):
        raise CheckpointError(
            f"{weights.path}: found {len(weights.names)} tensors, expected at least {least} for {field} of {CONFIG}"
        )


def generation_fields(fields: Mapping[str, Any], vocab_size: int, path: Path) -> dict[str, Any]:
    """Return the fields of a config.json about text generation, named as in generation_config.json.

    Raises:
        ConfigError: A value is not a token id; the message names the file `path`.
    """
    found = {name: fields[name] for name in _GENERATION if fields.get(name) is not None}
    for name, value in found.items():
        check_token_ids(name, value, -1 if name == "pad_token_id" else 0, vocab_size, path, ConfigError)
    return found


def without_generation(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json without those about text generation."""
    return {name: value for name, value in fields.items() if name not in _GENERATION}


def check_token_ids(name: str, value: object, least: int, vocab_size: int, path: Path, error: type[MolkvError]) -> None:
    """Check a field that holds a token id or a list of token ids.

    Raises:
        error: A value is not an integer from `least` to `vocab_size` - 1, or the list is empty.
    """
    ids = value if isinstance(value, list) else [value]
    if not ids or any(type(token) is not int or not least <= token < vocab_size for token in ids):
        raise error(f"{path}: {name} is {shown(value)}, expected token ids from {least} to {vocab_size - 1}, or null")


def _other_prefix(expected: str, found: Collection[str]) -> str:
    """Return text for an error message if tensors have another prefix than expected, else "".

    Args:
        expected: The name of a tensor that this checkpoint lacks. The name has at least three parts.
        found: The names of all tensors.
    """
    for tail in _tails(expected):
        for name in sorted(found):
            if name != tail and not name.endswith(f".{tail}"):
                continue
            theirs, ours = name.removesuffix(tail), expected.removesuffix(tail)
            who = "all tensors have" if all(other.startswith(theirs) for other in found) else "some tensors have"
            if not theirs:
                return f"; tensors lack the prefix {ours!r}"
            return f"; {who} the prefix {theirs!r}, expected {repr(ours) if ours else 'none'}"
    return ""


def _tails(name: str) -> Iterable[str]:
    """Return the endings of a dotted name that have at least two parts, longest first."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts) - 1))
