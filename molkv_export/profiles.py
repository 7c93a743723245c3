"""The profiles: the kinds of graphs that a bundle can hold, and the options of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from molkv_bundle import PROFILES, ArgumentError, DenseDtype, KVDtype, ModelConfig, RowDtype, WindowDtype
from molkv_export.checkpoints import Checkpoint
from molkv_export.families import FAMILIES
from molkv_export.graph.blocks import is_on_grid
from molkv_export.graph.build import GraphPlan
from molkv_export.graph.choices import (
    BLOCK_SIZES,
    CHUNK_LENGTHS,
    CONTEXT_LENGTH,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_LM_HEAD_DTYPE,
    DTYPES,
    LM_HEAD_DTYPES,
    LmHeadDtype,
)
from molkv_export.graph.linear import DenseFormat
from molkv_export.graph.static.modules import HalfModules, NnapiModules, QdqModules, StaticModules

_MODULES: dict[tuple[str, DenseDtype], type[StaticModules]] = {
    ("coreml", "float32"): StaticModules,
    ("coreml", "float16"): HalfModules,
    ("nnapi", "float32"): NnapiModules,
    ("nnapi", "qdq-int8"): QdqModules,
}


# Quantization-aware training rounds in blocks of this size (llama.cpp's Q4_0).
_GRID = 32
_SAMPLED, _SAMPLED_ROWS = 8, 64  # numbers of weights, and of rows of each


class GraphOptions(NamedTuple):
    """The options for graphs that a user can choose."""

    dense_dtype: DenseDtype = "float32"  # dtype of large weights
    # Number of weights that share a scale; only for int4. Default: 32 if the checkpoint's weights are already rounded
    # to 4 bits in blocks of 32, else DEFAULT_BLOCK_SIZE.
    block_size: int | None = None
    kv_dtype: KVDtype = "float32"  # dtype of the KV cache
    # Numbers of positions of a call, one for each static graph; 1 is always added. Default: the values of
    # CHUNK_LENGTHS that do not exceed the context length.
    chunk_lengths: Sequence[int] | None = None
    # Context length of the graphs. The default is the model's, but at most CONTEXT_LENGTH in static graphs, and at most
    # the default of the model's family in profile cpu.
    context_length: int | None = None
    expert_window: int | None = None  # expert window of static graphs; default: the model's
    # Dtype of the values in an expert window. Default: int8 in profile cpu if the store is int8 and the weights are
    # int8 or int4, else float32.
    window_dtype: WindowDtype | None = None
    lm_head_dtype: LmHeadDtype = DEFAULT_LM_HEAD_DTYPE  # dtype of the LM head; only for int4


def with_block_size(options: GraphOptions, source: Checkpoint) -> GraphOptions:
    """Return the options with a block size of 32 if none is given and the source's weights are on such a grid.

    Every product's weight has blocks along its inputs; the first rows of a few weights show whether they are on a grid.
    These are the first 8 weights whose names end in "_proj.weight", outside the networks of experts. In every family,
    the products of attention and of the feed-forward network are named so, and training rounds all of these or none. So
    8 are enough, and the checkpoint is not read twice. The LM head has another name: training may leave it unrounded.
    """
    if options.dense_dtype != "int4" or options.block_size is not None:
        return options
    names = [name for name in source.parameters if name.endswith("_proj.weight") and ".experts." not in name]
    samples = [source.tensor(name, 0, min(_SAMPLED_ROWS, source.shape(name)[0])).numpy() for name in names[:_SAMPLED]]
    is_rounded = samples and all(is_on_grid(sample, _GRID) for sample in samples)
    return options._replace(block_size=_GRID) if is_rounded else options


def plan_graphs(
    config: ModelConfig, profiles: Sequence[str], options: GraphOptions, experts_dtype: RowDtype
) -> list[GraphPlan]:
    """Build the graphs of some profiles for a model with a store of a dtype.

    Raises:
        ArgumentError: A profile is unknown, or does not support an option.
        ConfigError: A profile's operators do not support this model.
    """
    if set(profiles) == {"cpu"}:
        for name in ("chunk_lengths", "expert_window"):
            if getattr(options, name) is not None:
                wanted = "no value for profile cpu; only the graphs of profiles coreml and nnapi have fixed shapes"
                raise ArgumentError(name, getattr(options, name), wanted)
    return [_plan(config, profile, options, experts_dtype) for profile in dict.fromkeys(profiles)]


def _default_window_dtype(config: ModelConfig, profile: str, dense: DenseDtype, experts: RowDtype) -> WindowDtype:
    """Return the faster dtype of a window if it costs nothing beside the rounding of weights, else float32."""
    is_rounded = experts == "int8" and dense in ("int8", "int4")
    return "int8" if is_rounded and profile == "cpu" and "int8" in config.window_dtypes else "float32"


def _plan(config: ModelConfig, profile: str, options: GraphOptions, experts_dtype: RowDtype) -> GraphPlan:
    _check(config, profile, options)
    window_dtype = options.window_dtype or _default_window_dtype(config, profile, options.dense_dtype, experts_dtype)
    block_size = options.block_size or DEFAULT_BLOCK_SIZE
    dense = DenseFormat(options.dense_dtype, block_size, options.kv_dtype, window_dtype, options.lm_head_dtype)
    family = FAMILIES[config.model_type]
    if profile == "cpu":
        config = config.restricted(_context(config, profile, options), config.expert_window)
        return GraphPlan(profile, config, dense, {0: family.graph(config, dense)})
    assert family.static_graph is not None  # since `config.profiles` has a static profile
    modules = _MODULES[profile, options.dense_dtype]
    kv_dtype: KVDtype = "float16" if options.dense_dtype == "float16" else "float32"
    context = _context(config, profile, options)
    window = min(options.expert_window or config.expert_window, context)
    config = config.restricted(context, window)
    asked = [n for n in CHUNK_LENGTHS if n <= context] if options.chunk_lengths is None else options.chunk_lengths
    lengths = sorted({1, *asked})
    graphs = {length: family.static_graph(config, modules, kv_dtype, length) for length in lengths}
    return GraphPlan(profile, config, dense._replace(kv_dtype=kv_dtype), graphs)


def _context(config: ModelConfig, profile: str, options: GraphOptions) -> int:
    default = config.default_context_length if profile == "cpu" else CONTEXT_LENGTH
    return options.context_length or min(config.max_position_embeddings, default)


def _check(config: ModelConfig, profile: str, options: GraphOptions) -> None:
    if profile not in PROFILES:
        raise ArgumentError("profile", profile, f"one of {', '.join(PROFILES)}")
    if profile not in config.profiles:
        wanted = f"{' or '.join(config.profiles)} for a model of type {config.model_type}"
        raise ArgumentError("profile", profile, wanted)
    if options.dense_dtype not in DTYPES[profile]:
        wanted = f"one of {', '.join(DTYPES[profile])} in profile {profile}"
        raise ArgumentError("dense_dtype", options.dense_dtype, f"{wanted}; add other profiles with --add-profile")
    if options.block_size not in (None, *BLOCK_SIZES):
        sizes = f"one of {', '.join(map(str, BLOCK_SIZES))} (the sizes of ONNX Runtime's quantizer)"
        raise ArgumentError("block_size", options.block_size, sizes)
    if options.lm_head_dtype not in LM_HEAD_DTYPES:
        raise ArgumentError("lm_head_dtype", options.lm_head_dtype, f"one of {', '.join(LM_HEAD_DTYPES)}")
    kv_dtypes = ("float32", "int8") if profile == "cpu" else ("float32",)
    if options.kv_dtype not in kv_dtypes:
        wanted = f"{' or '.join(kv_dtypes)} in profile {profile}"
        reason = "the cache of a static graph has the dtype that the graph computes in"
        raise ArgumentError("kv_dtype", options.kv_dtype, f"{wanted}; {reason}")
    window_dtypes = config.window_dtypes if profile == "cpu" else ("float32",)
    if options.window_dtype not in (None, *window_dtypes):
        has_choice = profile != "cpu" or "int8" in window_dtypes
        where = f"in profile {profile}" if has_choice else "for a model without an expert window"
        raise ArgumentError("window_dtype", options.window_dtype, f"{' or '.join(window_dtypes)} {where}")
    for name, dtype in (("dense_dtype", "qdq-int8"), ("kv_dtype", "int8")):
        if getattr(options, name) == dtype and not FAMILIES[config.model_type].can_be_calibrated:
            raise ArgumentError(name, dtype, f"another dtype for a model of type {config.model_type}")
    limits = {
        "context_length": (options.context_length, config.max_position_embeddings),
        "expert_window": (options.expert_window, config.attended_positions),
    }
    for name, (asked, limit) in limits.items():
        if asked is not None and not 0 < asked <= limit:
            raise ArgumentError(name, asked, f"1 to {limit} (the limit of the model)")
    for length in options.chunk_lengths or () if profile != "cpu" else ():
        if not 1 <= length <= _context(config, profile, options):
            context = _context(config, profile, options)
            raise ArgumentError("chunk_lengths", length, f"lengths from 1 to {context} (the graph's context)")
