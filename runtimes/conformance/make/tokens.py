"""Cases of tokens and texts. The source model in PyTorch and the sampler in plain Python choose the expected tokens.

Kernels differ by rounding. A token is therefore compared only if no difference within the bundle's golden limit can
change the token (`Sampling.margin`). Prompts are chosen so that nearly all tokens are compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from molkv_bundle import Bundle, read_golden
from molkv_export.families import open_checkpoint
from molkv_export.source.model import SourceModel
from molkv_runtime import ExpertStore, Sampling
from runtimes.conformance.make.plain_sampling import sample

Case = dict[str, Any]
GREEDY: dict[str, Any] = {"seed": "0"}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": str(2**40 + 7)}
_VARIED: dict[str, Any] = {"temperature": 5.0, "min_p": 0.001}  # almost any token can be chosen
_PENALIZED_GREEDY: dict[str, Any] = {
    "repetition_penalty": 1.1,
    "presence_penalty": 1.0,
    "frequency_penalty": 0.5,
    "logit_bias": {"3": 4.0, "5": -100.0},
    "seed": "0",
}
_PENALIZED: dict[str, Any] = {
    "temperature": 1.3,
    "min_p": 0.02,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "logit_bias": {"3": 1.5, "5": -100.0},
    "seed": "11",
}
_TRIES = 1000  # number of prompts, or seeds, to try until all tokens can be compared


class Source:
    """The source model of a bundle, with its weights and records rounded as in the bundle."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        self.bundle = Bundle(bundle)
        self.config = self.bundle.config
        self._store = ExpertStore(self.bundle)
        self._model = SourceModel(open_checkpoint(checkpoint), self.bundle)
        self.limit = golden_limit(self.bundle)
        self.is_exact = self.limit < 1e-3

    def continued(
        self, prompt: list[int], new: int, options: Case, sequence: int = 0, stops: tuple[int, ...] = ()
    ) -> Case:
        """Continue a prompt. Return the new `ids`, why they end (`finish`), and the number to compare (`compared`)."""
        steps = list(self._steps(prompt, new, options, sequence, stops))
        ids = [token for token, _ in steps]
        certain = [is_certain for _, is_certain in steps]
        compared = certain.index(False) if False in certain else len(ids)
        return {"ids": ids, "finish": "stop" if ids[-1] in stops else "length", "compared": compared}

    def likeliest(self, ids: list[int]) -> list[float]:
        """Return the likeliest token after `ids`, and its logit."""
        logits = self._model.logits(np.array(ids), self._store, last=1)[0]
        return [int(logits.argmax()), float(logits.max())]

    def logprobs(self, prompt: list[int], ids: list[int], count: int) -> list[list[float]]:
        """Return for each id its log-probability, then those of the `count` likeliest tokens."""
        rows = self._model.logits(np.array([*prompt, *ids]), self._store, last=len(ids) + 1)[:-1].astype(np.float64)
        rows -= np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) + rows.max(
            axis=1, keepdims=True
        )
        best = -np.sort(-rows, axis=1)[:, :count]
        return [[row[token], *top.tolist()] for row, token, top in zip(rows, ids, best, strict=True)]

    def best(self, tried: Iterable[list[int]], new: int, options: Case, sequence: int) -> tuple[list[int], Case]:
        """Return a prompt and its continuation: the first whose tokens can all be compared, or else the best."""
        best, most = [0], -1
        for prompt in tried:
            steps = self._steps(prompt, new, options, sequence)
            certain = sum(1 for _ in takewhile(itemgetter(1), steps))  # stops after the first uncertain token
            if certain > most:
                best, most = prompt, certain
            if certain == self._longest(prompt, new):
                break
        return best, self.continued(best, new, options, sequence)

    def _longest(self, prompt: list[int], new: int) -> int:
        return min(new, self.config.max_position_embeddings - len(prompt) + 1)

    def _steps(
        self, prompt: list[int], new: int, options: Case, sequence: int, stops: tuple[int, ...] = ()
    ) -> Iterator[tuple[int, bool]]:
        """Yield each token, and True if no difference within the limit can change this token."""
        sampling, ids = _sampling(options), list[int]()
        while len(ids) < self._longest(prompt, new) and not (ids and ids[-1] in stops):
            logits = self._model.logits(np.array([*prompt, *ids]), self._store, last=1)[0]
            is_certain = sampling.margin(logits, prompt, ids, sequence).logits > self.limit
            ids.append(sample(logits.tolist(), options, prompt, ids, sequence))
            yield ids[-1], is_certain


class Prompts:
    """The prompts to try for a case. Prompts of the existing suite come first, so that a new suite keeps them."""

    def __init__(self, known: list[Case]) -> None:
        self._known = {case["name"]: case for case in known}

    def tokens(self, name: str, lengths: tuple[int, ...], vocab_size: int) -> Iterator[Iterator[list[int]]]:
        """Yield the prompts to try for each sequence of a batch: the existing prompt, then random ids of its length."""
        known = self._known.get(name, {}).get("prompts", [])
        for index, length in enumerate(lengths):
            random = np.random.default_rng((zlib.crc32(name.encode()), index))
            drawn = (random.integers(0, vocab_size, length).tolist() for _ in range(_TRIES))
            yield chain(known[index : index + 1], drawn)

    def seeds(self, name: str) -> list[str]:
        """Return the seeds to try for a sampled text."""
        known = self._known.get(name)
        return ([known["sampling"]["seed"]] if known else []) + [str(seed) for seed in range(_TRIES)]


def token_cases(name: str, source: Source, prompts: Prompts) -> list[Case]:
    """Return the cases of one bundle: batches of different lengths, a long prompt, full contexts, a stop token."""
    context = source.config.max_position_embeddings
    long = 140 if context >= 150 else context - 14  # longer than a chunk of 128
    batch = (1, 7, 23)
    # If kernels differ much, few sampled tokens are certain. The cases then have fewer tokens, and all are greedy.
    penalized, new = (_PENALIZED, 12) if source.is_exact else (_PENALIZED_GREEDY, 6)
    chosen: list[tuple[str, Case, int, tuple[int, ...]]] = [
        ("greedy", GREEDY, new, batch),
        ("penalized", penalized, new, batch),
    ]
    chosen += [("sampled", SAMPLED, new, batch)] if source.is_exact else []
    chosen += [("long", GREEDY, 6, (long,)), ("full", GREEDY, 9, (context - 3, 4, context))]
    cases = [
        _token_case(f"{name}/{what}", source, prompts, options, new, lengths) for what, options, new, lengths in chosen
    ]
    whole = _token_case(f"{name}/stop", source, prompts, GREEDY, 8, (5,))
    stop = whole["expected"][0]["ids"][-1]
    whole["expected"] = [source.continued(whole["prompts"][0], 8, GREEDY, stops=(stop,))]
    return [*cases, {**whole, "stop_ids": [stop]}]


def _token_case(name: str, source: Source, prompts: Prompts, options: Case, new: int, lengths: tuple[int, ...]) -> Case:
    chosen = [
        source.best(tried, new, options, sequence)
        for sequence, tried in enumerate(prompts.tokens(name, lengths, source.config.vocab_size))
    ]
    return {
        "name": name,
        "kind": "tokens",
        "bundle": name.partition("/")[0],
        "prompts": [prompt for prompt, _ in chosen],
        "max_new_tokens": new,
        "sampling": options,
        "expected": [case for _, case in chosen],
    }


def text_cases(name: str, source: Source, prompts: Prompts, texts: list[str]) -> list[Case]:
    """Return the cases of streamed texts. A naive decoder computes the expected pieces.

    The first continuation ends with a token of the bundle's `eos_token_ids`. The second contains a special token, which
    the text does not show. The third has a piece with a character of several bytes. The fourth uses the bundle's
    sampling defaults.
    """
    tokenizer = Tokenizer.from_file(str(source.bundle.path / "tokenizer.json"))
    generation = source.bundle.manifest.generation
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    shows: list[Callable[[Case], bool]] = [
        lambda found: found["finish"] == "stop",
        lambda found: bool(special.intersection(found["ids"][:-1])),
        lambda found: any(len(piece.encode()) > len(piece) and "�" not in piece for piece in found["pieces"]),
    ]
    cases = []
    for number, text in enumerate(texts):
        case_name, ids = f"{name}/text-{number}", tokenizer.encode(text).ids
        found, options = {}, GREEDY
        for seed in prompts.seeds(case_name):
            options = {**_VARIED, "seed": seed}
            found = source.continued(ids, 16, options, stops=generation.eos_token_ids)
            found["pieces"] = _pieces(tokenizer, ids, found["ids"], found["finish"])
            if found["compared"] == len(found["ids"]) and shows[number % 3](found):
                break
        else:
            raise ValueError(f"{case_name}: none of {_TRIES} seeds gives a text with the wanted property")
        cases.append(_text_case(case_name, text, ids, {"sampling": options}, found))
    cases.append(_stop_case(f"{name}/text-stop-string", source, tokenizer, prompts, texts[0]))
    # The second text has a special token, which ends this text.
    case = cases[1]
    ids = case["expected"]["ids"]
    count = next(number for number, token in enumerate(ids, start=1) if token in special)
    found = {"ids": ids[:count], "finish": "stop", "compared": count}
    found["pieces"] = _pieces(tokenizer, case["prompt_ids"], ids[:count], "stop")
    content = tokenizer.id_to_token(ids[count - 1])
    cases.append({**case, "name": f"{name}/text-stop-special", "stop": ["?", content], "expected": found})
    defaults = {**msgspec.structs.asdict(generation.sampling), "seed": "0"}
    ids = tokenizer.encode(texts[0]).ids
    found = source.continued(ids, 16, defaults, stops=generation.eos_token_ids)
    found["pieces"] = _pieces(tokenizer, ids, found["ids"], found["finish"])
    return [*cases, _text_case(f"{name}/text-defaults", texts[0], ids, {}, found)]


def _stop_case(name: str, source: Source, tokenizer: Tokenizer, prompts: Prompts, text: str) -> Case:
    """Return a case of a text that ends at a stop string, which begins and ends in the middle of the text."""
    ids, ends = tokenizer.encode(text).ids, source.bundle.manifest.generation.eos_token_ids
    for seed in prompts.seeds(name):
        options = {**_VARIED, "seed": seed}
        found = source.continued(ids, 16, options, stops=ends)
        texts = _texts(tokenizer, ids, found["ids"], found["finish"])
        if found["compared"] == 16 and (stop := _stop_over_a_border(texts)):
            stops = [stop, "never in the text", f"{stop[1:]}?"]
            count = next(number for number, shown in enumerate(texts, start=1) if stop in shown)
            shown = [_visible(each, stops) for each in ["", *texts[:count]]]
            pieces = [after[len(before) :] for before, after in pairwise(shown)]
            expected = {"ids": found["ids"][:count], "finish": "stop", "compared": count}
            expected["pieces"] = [piece for piece in pieces if piece]
            return {**_text_case(name, text, ids, {"sampling": options}, expected), "stop": stops}
    raise ValueError(f"{name}: none of {_TRIES} seeds gives a text with a stop string over the border of two tokens")


def _stop_over_a_border(texts: list[str]) -> str:
    """Return three characters around the end of a token, which are nowhere before in the text; "" if there are none."""
    whole = texts[-1]
    for end in sorted({len(text) for text in texts[4:-2]}):
        stop = whole[end - 1 : end + 2]
        if len(stop) == 3 and stop.isprintable() and "�" not in stop and whole.index(stop) == end - 1:
            return stop
    return ""


def _visible(text: str, stops: list[str]) -> str:
    """Return the part of a text that can be shown: before a stop string, or before the beginning of one at its end."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    held = [count for stop in stops for count in range(1, len(stop)) if text.endswith(stop[:count])]
    return text[: len(text) - max(held, default=0)]


def _text_case(name: str, text: str, ids: list[int], sampling: Case, expected: Case) -> Case:
    about = {"name": name, "kind": "text", "bundle": name.partition("/")[0], "prompt": text, "prompt_ids": ids}
    return {**about, "max_new_tokens": 16, **sampling, "expected": expected}


def golden_limit(bundle: Bundle) -> float:
    """Return the largest allowed difference between a driver's logit and the source model's."""
    return read_golden(bundle).limits.max_abs


def _sampling(options: dict[str, Any]) -> Sampling:
    bias = {int(token): number for token, number in options.get("logit_bias", {}).items()}
    return Sampling(**{**options, "seed": int(options["seed"]), "logit_bias": bias})


def _pieces(tokenizer: Tokenizer, prompt: list[int], ids: list[int], finish: str) -> list[str]:
    """Return the pieces of a text: the text that is shown after each token, without the text before."""
    texts = ["", *_texts(tokenizer, prompt, ids, finish)]
    return [after[len(before) :] for before, after in pairwise(texts) if after != before]


def _texts(tokenizer: Tokenizer, prompt: list[int], ids: list[int], finish: str) -> list[str]:
    """Return the text that is shown after each token, as docs/bundle-format.md, "Text", defines it: decode all ids."""
    shown = ids[:-1] if finish == "stop" else ids

    def decoded(count: int) -> str:
        whole, before = (tokenizer.decode(part) for part in ([*prompt, *shown[:count]], prompt))
        return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(shown[:count])

    texts, text = [], ""
    for count in range(1, len(shown) + 1):
        token = tokenizer.id_to_token(shown[count - 1])
        held = token is None or token.startswith("<0x") or decoded(count).endswith("�")
        if not held or count == len(shown):
            text = decoded(count)
        texts.append(text)
    return texts
