"""The bundle format (`docs/bundle-format.md`) as Python: it is read and checked here, and nothing is run."""

from molkv_bundle.bundle import GENERATION_CONFIG, TOKENIZER, Bundle
from molkv_bundle.config import KVCacheShape, ModelConfig, Rotation, TensorInfo, Vector
from molkv_bundle.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    MissingExtraError,
    MolkvError,
    OutputError,
    ProviderError,
    RequestError,
    one_line,
)
from molkv_bundle.families import FAMILIES, model_config, read_config
from molkv_bundle.folders import contents, is_system_file
from molkv_bundle.golden import GOLDEN, TOP, VERSION, VERSION_KEY, GoldenText, Projection, max_abs, read_golden
from molkv_bundle.graph_file import check_graph_file
from molkv_bundle.hashing import file_sha256
from molkv_bundle.interface import HIDDEN, Arrays, Tensors, for_call, graph_interface
from molkv_bundle.json_file import decode_json, read_bytes, shown
from molkv_bundle.lookup_experts import LookupExpertConfig
from molkv_bundle.manifest import (
    MANIFEST,
    NO_DIGEST,
    PROFILES,
    SCHEMA_VERSION,
    DenseDtype,
    FileInfo,
    GraphFile,
    GraphInfo,
    KVDtype,
    Manifest,
    Provenance,
    Shard,
    StoreInfo,
    read_manifest,
    write_manifest,
)
from molkv_bundle.mole import MoleConfig
from molkv_bundle.molkv import MolkvConfig
from molkv_bundle.record import Ids, Records, checked_record_dtype, checksum, record_bytes, record_dtype, record_fields
from molkv_bundle.rope import rotary_tables, rotate
from molkv_bundle.row_formats import INT4_LEVELS, NF4_LEVELS, ROW_FORMATS, Floats, RowDtype, ValueDecoder
from molkv_bundle.shard import RECORDS, Access, OpenShard, shard_header
from molkv_bundle.tensor_file import MAX_HEADER_BYTES, TensorEntry, TensorFile
from molkv_bundle.verify import verify

__all__ = [
    "FAMILIES",
    "GENERATION_CONFIG",
    "GOLDEN",
    "HIDDEN",
    "INT4_LEVELS",
    "MANIFEST",
    "MAX_HEADER_BYTES",
    "NF4_LEVELS",
    "NO_DIGEST",
    "PROFILES",
    "RECORDS",
    "ROW_FORMATS",
    "SCHEMA_VERSION",
    "TOKENIZER",
    "TOP",
    "VERSION",
    "VERSION_KEY",
    "Access",
    "Arrays",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DenseDtype",
    "FileInfo",
    "Floats",
    "GoldenText",
    "GraphFile",
    "GraphInfo",
    "Ids",
    "KVCacheShape",
    "KVDtype",
    "LookupExpertConfig",
    "Manifest",
    "MissingExtraError",
    "ModelConfig",
    "MoleConfig",
    "MolkvConfig",
    "MolkvError",
    "OpenShard",
    "OutputError",
    "Projection",
    "Provenance",
    "ProviderError",
    "Records",
    "RequestError",
    "Rotation",
    "RowDtype",
    "Shard",
    "StoreInfo",
    "TensorEntry",
    "TensorFile",
    "TensorInfo",
    "Tensors",
    "ValueDecoder",
    "Vector",
    "check_graph_file",
    "checked_record_dtype",
    "checksum",
    "contents",
    "decode_json",
    "file_sha256",
    "for_call",
    "graph_interface",
    "is_system_file",
    "max_abs",
    "model_config",
    "one_line",
    "read_bytes",
    "read_config",
    "read_golden",
    "read_manifest",
    "record_bytes",
    "record_dtype",
    "record_fields",
    "rotary_tables",
    "rotate",
    "shard_header",
    "shown",
    "verify",
    "write_manifest",
]
