/** The core of the driver, for every platform. */

export type { ModelOptions, Sequences, Session, WorkerFactory } from "./api.js";
export type {
    Backend,
    GraphCall,
    GraphFiles,
    GraphSession,
    HostTensor,
    KvCache,
    KvCacheShape,
    LayerSlots,
    ResidentTensor,
    TensorData,
    TensorDType,
} from "./backend.js";
export { BundleError, MemoryError, MolkvError, ProviderError, RequestError, type ErrorKind } from "./errors.js";
export { Model } from "./model.js";
export type {
    ChatOptions,
    Finish,
    GenerateOptions,
    Logprob,
    Message,
    ModelStats,
    OpenOptions,
    Progress,
    Sampling,
    SelfTest,
    Token,
} from "./options.js";
export type {
    BytesListener,
    Description,
    ReadOptions,
    RecordReader,
    ShardLocation,
    Source,
    SourceStats,
    TableLocation,
    WholeFile,
} from "./source.js";
