"""Choose the texts and prompts of a validation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from molkv_bundle import TOKENIZER, ArgumentError, RequestError
from molkv_export.corpus import standard_library
from molkv_export.source.model import Ids
from molkv_runtime import Generator


class Scope(msgspec.Struct, frozen=True):
    """Amount of text and records to compare."""

    sequences: int = 8  # number of texts
    continuations: int = 20  # number of greedy continuations
    new_tokens: int = 256  # number of tokens in each continuation
    records: int = 0  # number of records, spread evenly over the vocabulary; 0 means all
    text_length: int = 512  # tokens of a text; fewer if the context is shorter, more if four expert windows are longer

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            least = int(name != "records")
            if getattr(self, name) < least:
                raise ArgumentError(name, getattr(self, name), f"{least} or more")


_BEYOND_WINDOW = 64  # number of tokens by which a text is longer than the longest window

QUICK = Scope(sequences=1, continuations=4, new_tokens=32, records=1024)


class Texts(msgspec.Struct, frozen=True):
    """The texts of a validation."""

    description: str
    is_real: bool  # False: the texts are random token ids
    sequences: list[Ids]  # all of the same length
    whole_context: Ids  # as long as the model's context, for the phase "context end"
    prompts: list[Ids]  # of different lengths
    new_tokens: int  # number of tokens to generate after each prompt


def choose_texts(generator: Generator, text: Path | None, scope: Scope) -> Texts:
    """Choose texts for a bundle.

    Args:
        generator: Loaded bundle.
        text: File of UTF-8 text. The default is the modules of Python's standard library that `train` holds out. For a
            bundle without a tokenizer, the default is random token ids.
        scope: Amount of text.

    Raises:
        RequestError: The text cannot be read or is too short, or the bundle has no tokenizer for it.
    """
    config = generator.config
    context = config.max_position_embeddings
    # The ring of an expert window wraps around; a sliding window only has to be shorter than the text.
    length = min(context, max(scope.text_length, 4 * config.expert_window, config.longest_window + _BEYOND_WINDOW))
    is_real = TOKENIZER in generator.bundle.manifest.files
    ids, description = _token_ids(generator, text, max(scope.sequences * length, context), is_real)
    if len(ids) < context:
        raise RequestError(
            f"{text or 'the text'}: has {len(ids)} tokens, expected at least {context} (the model's context)"
        )
    count = min(scope.sequences, len(ids) // length)
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    new_tokens = min(scope.new_tokens, max(1, length - 1))
    longest = max(1, length - new_tokens)
    prompt_starts = np.linspace(0, len(ids) - longest, scope.continuations).astype(int)
    lengths = np.linspace(1, longest, scope.continuations).astype(int)
    return Texts(
        description=f"{description}: {count} {'text' if count == 1 else 'texts'} of {length} tokens",
        is_real=is_real,
        sequences=[ids[start : start + length] for start in starts],
        whole_context=ids[:context],
        prompts=[ids[start : start + length] for start, length in zip(prompt_starts, lengths, strict=True)],
        new_tokens=new_tokens,
    )


def _token_ids(generator: Generator, text: Path | None, enough: int, has_tokenizer: bool) -> tuple[Ids, str]:
    if not has_tokenizer:
        if text is not None:
            raise RequestError(f"{text}: cannot be encoded, because {generator.bundle.where} has no {TOKENIZER}")
        return np.random.default_rng(0).integers(0, generator.config.vocab_size, enough), "random token ids"
    if text is None:
        content, description = "\n".join(standard_library().validation), "held-out standard library modules"
    else:
        try:
            content, description = text.read_text(encoding="utf-8"), str(text)
        except OSError as error:
            raise RequestError(f"{text}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise RequestError(f"{text}: is not UTF-8 text ({error})") from error
    return np.array(generator.tokenizer.encode(content).ids, np.int64), description
