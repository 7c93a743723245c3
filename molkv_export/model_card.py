"""The model card of a published bundle: README.md, which the Hub shows."""

from __future__ import annotations

from molkv_bundle import TOKENIZER, URL_EXTRAS, Bundle, GraphInfo, LookupExpertConfig, ModelConfig, download_command
from molkv_export.inspection import sizes_of
from molkv_export.terminal import human_bytes
from molkv_runtime import SelfTest

MARK = "<!-- `molkv-export push` wrote this file, and replaces it. Without this line, it keeps your text. -->"
_FOLDER = "my.bundle"


def model_card(bundle: Bundle, tested: SelfTest, url: str) -> str:
    """Return the text of README.md.

    Args:
        bundle: The bundle.
        tested: The result of its self-test.
        url: The URL that the bundle will have.
    """
    name = url.partition("@")[0].rstrip("/").rpartition("/")[2]
    return "\n\n".join(
        (
            _metadata(bundle),
            MARK,
            f"# {name}",
            _introduction(bundle),
            *_contents(bundle),
            *_parity(tested),
            *_usage(bundle, url),
            *_provenance(bundle),
        )
    )


def _metadata(bundle: Bundle) -> str:
    tags = ["onnx", "onnxruntime", "lookup-experts", bundle.manifest.model.model_type]
    lines = ["library_name: molkv-export", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(("---", *lines, "---"))


def _introduction(bundle: Bundle) -> str:
    model, sizes = bundle.config, sizes_of(bundle)
    kind = {"mole": "MoLE", "molkv": "MoLKV"}.get(model.model_type, model.model_type)
    return (
        f"This is a {kind} language model as a bundle of `molkv-export`: an ONNX graph with the dense weights, and an "
        f"expert store with one record for each token id. A host driver reads one record of "
        f"{human_bytes(sizes.bytes_per_token)} for each token, so the store can stay on flash storage or on a server; "
        "only the graph must fit into RAM. The drivers run ONNX Runtime and need no PyTorch."
    )


def _contents(bundle: Bundle) -> tuple[str, ...]:
    model, sizes, table = bundle.config, sizes_of(bundle), bundle.manifest.experts
    rows = {
        "layers, hidden size, vocabulary": f"{model.num_hidden_layers}, {model.hidden_size}, {model.vocab_size}",
        **_experts(model),
        "context": f"{model.max_position_embeddings} tokens",
        "expert store": f"{human_bytes(sizes.storage_expert_store)}, {table.dtype}, {table.rows} records of "
        f"{table.stride} bytes",
        **{f"profile `{name}`": _graph(bundle, graph) for name, graph in bundle.manifest.graphs.items()},
        "tokenizer": "`tokenizer.json`" if TOKENIZER in bundle.manifest.files else "none: prompts are token ids",
        "chat template": bundle.manifest.generation.chat_template or "none",
    }
    return "## Contents", _table(("", ""), rows)


def _experts(model: ModelConfig) -> dict[str, str]:
    if not isinstance(model, LookupExpertConfig):
        return {}
    return {"experts of each token id": f"{model.num_experts} in each of {len(model.expert_layers or ())} layers"}


def _graph(bundle: Bundle, graph: GraphInfo) -> str:
    calls = "any length" if not graph.is_static else f"lengths {', '.join(map(str, graph.lengths))}"
    size = human_bytes(bundle.manifest.files[graph.data].size)
    return (
        f"{size} of {graph.dense_dtype} weights, KV cache {graph.kv_dtype}, calls of {calls}, context "
        f"{graph.context_length}; ONNX Runtime {graph.min_onnxruntime} or newer"
    )


def _parity(tested: SelfTest) -> tuple[str, ...]:
    rows = {
        phase.phase: f"{phase.positions} | {phase.max_abs_logit:.1e} | {phase.relative_l2:.1e} | "
        f"{phase.right_tokens} of {phase.certain_tokens}"
        for phase in tested.phases
    }
    limits = tested.phases[0].limits
    return (
        "## Parity with PyTorch",
        "The bundle holds golden vectors: results of the PyTorch model, computed at export, with weights and records "
        f"rounded to the dtypes of the bundle. `molkv-export selftest` compared them with the graph of profile "
        f"`{tested.profile}` before the upload. The limits are {limits.max_abs:.1e} (largest difference of a logit) "
        f"and {limits.relative_l2:.1e} (relative L2). A token counts as certain if rounding cannot change it.",
        _table(("phase", "positions | largest difference of a logit | relative L2 | certain tokens right"), rows),
        f"Greedy text: {tested.greedy_identical} of {tested.greedy_tokens} tokens are identical.",
    )


def _usage(bundle: Bundle, url: str) -> tuple[str, ...]:
    static = [name for name, graph in bundle.manifest.graphs.items() if graph.is_static]
    prompt = ' --prompt "def "' if TOKENIZER in bundle.manifest.files else ""
    download = download_command(url, _FOLDER)
    extra = URL_EXTRAS[url.partition("://")[0]]
    remote = f"""# reads only the records that a text needs, and keeps them in a cache
molkv-export run {url}{prompt}
molkv-export selftest {url}"""
    package = f"# each folder has a README with the next steps\nmolkv-export package {_FOLDER} out --target"
    parts = {
        f"Python (`pip install 'molkv-export[{extra}]'`)": remote,
        "Python, in a program": f'from molkv_runtime import Generator\n\ngenerator = Generator("{url}")',
        "A copy on this machine, which the other drivers need": download,
        "C++": f"molkv run {_FOLDER}{prompt} --onnxruntime libonnxruntime.so",
        "Android, iOS": f"{package} android\nmolkv-export package {_FOLDER} out-ios --target ios",
    }
    if "cpu" in bundle.manifest.graphs:
        parts["Browser"] = f"{package} web"
    sections = [f"{title}:\n\n```\n{code}\n```" for title, code in parts.items()]
    hint = f"Profiles {', '.join(static)} have static graphs for the accelerators of phones." if static else ""
    return ("## Run it", *sections, *filter(None, (hint,)))


def _provenance(bundle: Bundle) -> tuple[str, ...]:
    made = bundle.manifest.provenance
    rows = {
        "command": f"`{made.command}`".replace("|", "\\|"),
        "tools": ", ".join(f"{name} {version}" for name, version in made.tools.items()),
        **{f"source `{name}`": f"sha256 {digest}" for name, digest in made.source.items()},
        "manifest": f"sha256 {bundle.manifest.sha256}",
    }
    return "## Provenance", _table(("", ""), rows) + "\n"


def _table(header: tuple[str, str], rows: dict[str, str]) -> str:
    columns = 2 + header[1].count("|")
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * columns]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])
