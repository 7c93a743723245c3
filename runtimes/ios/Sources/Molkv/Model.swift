// Open models.
import CMolkv
import Foundation

/// An open bundle: its graphs, its expert store and its tokenizer.
///
/// Tasks and threads may share a model; each uses its own sessions. All functions block, so call them outside the main
/// thread. They throw a ``MolkvError``. The model is closed when it and its sessions are not used any more.
public final class Model: Sendable {
    /// Facts about the model.
    public let info: ModelInfo
    /// The sampling that the bundle recommends.
    public let defaultSampling: Sampling
    nonisolated(unsafe) private let pointer: OpaquePointer
    private let calls = DispatchQueue(label: "molkv.model", attributes: .concurrent)  // a barrier: no other call runs

    /// Open the bundle in a folder, check it, and load its graphs.
    public init(path: URL, options: ModelOptions = ModelOptions()) throws {
        pointer = try Copies.use { copies in
            let pairs = try options.providerOptions.map {
                molkv_option(name: try copies.copy($0.key), value: try copies.copy($0.value))
            }
            var open = molkv_model_options()
            open.size = MemoryLayout<molkv_model_options>.size
            open.onnxruntime = OrtGetApiBase()
            open.path = try copies.copy(path.path)
            open.profile = try options.profile.map(copies.copy)
            open.provider = try copies.copy(options.provider)
            open.provider_options = copies.copy(pairs)
            open.provider_option_count = pairs.count
            open.require_provider = options.requireProvider ? 1 : 0
            open.skip_provider_check = options.skipProviderCheck ? 1 : 0
            open.threads = Int32(clamping: options.threads)
            var model: OpaquePointer?
            try check(molkv_model_open(&open, &model))
            return model!
        }
        info = ModelInfo(pointer)
        defaultSampling = Sampling(defaultsOf: pointer)
    }

    deinit { molkv_model_close(pointer) }

    /// Hash every file of the bundle, and run its golden vectors. Other calls with the model wait meanwhile.
    ///
    /// - Returns: A report with one line for each check.
    /// - Throws: If a check fails, an error whose message is the report.
    public func selfTest() throws -> String {
        try calls.sync(flags: .barrier) {
            var report: UnsafePointer<CChar>?
            try check(molkv_selftest(pointer, &report), report: report)
            return String(cString: report!)
        }
    }

    /// Convert a text to token ids.
    ///
    /// - Parameter addSpecialTokens: Add the tokens that the tokenizer adds to a prompt, such as one at its start.
    public func tokenize(_ text: String, addSpecialTokens: Bool = true) throws -> [Int32] {
        let bytes = Array(text.utf8CString)
        return try use {
            try filled(capacity: bytes.count) {
                molkv_tokenize(pointer, bytes, bytes.count - 1, addSpecialTokens ? 1 : 0, $0, $1, &$2)
            }
        }
    }

    /// Convert token ids to text, without special tokens.
    public func detokenize(_ ids: [Int32]) throws -> String {
        let bytes: [CChar] = try use {
            try filled(capacity: 8 * ids.count) { molkv_detokenize(pointer, ids, ids.count, $0, $1, &$2) }
        }
        return bytes.withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
    }

    /// Create a session of empty sequences, and allocate all its memory.
    public func session(_ options: SessionOptions = SessionOptions()) throws -> Session {
        var create = molkv_session_options(
            size: MemoryLayout<molkv_session_options>.size, batch_size: Int32(clamping: options.batchSize),
            max_length: Int32(clamping: options.maxLength ?? 0),
            prefill_chunk: Int32(clamping: options.prefillChunk ?? 0))
        var session: OpaquePointer?
        try use { try check(molkv_session_create(pointer, &create, &session)) }
        return Session(self, session!)
    }

    /// Run a call that may run beside others, but not beside a self-test.
    func use<Result>(_ call: () throws -> Result) rethrows -> Result { try calls.sync(execute: call) }
}

/// Facts about a model.
public struct ModelInfo: Sendable {
    /// "molkv", "mole" or "gemma4_text".
    public let modelType: String
    public let profile, denseDtype, kvDtype, expertsDtype: String
    /// Where nodes run, such as "99 nodes on CPUExecutionProvider".
    public let placements: String
    public let vocabSize: Int
    /// The longest text, in tokens.
    public let contextLength: Int
    /// In tokens; 0 if the model has no window.
    public let expertWindow: Int
    /// Whether prompts can be texts.
    public let hasTokenizer: Bool
    /// Bytes of the graphs and their weights, of the expert store, and those that are read for one token.
    public let denseBytes, storeBytes, recordBytes: Int64
    /// The token ids that end a text.
    public let endIDs: [Int32]

    init(_ model: OpaquePointer) {
        var info = molkv_model_info()
        info.size = MemoryLayout<molkv_model_info>.size
        precondition(molkv_model_get_info(model, &info) == MOLKV_OK)
        modelType = String(cString: info.model_type)
        profile = String(cString: info.profile)
        denseDtype = String(cString: info.dense_dtype)
        kvDtype = String(cString: info.kv_dtype)
        expertsDtype = String(cString: info.experts_dtype)
        placements = String(cString: info.placements)
        vocabSize = Int(info.vocab_size)
        contextLength = Int(info.context_length)
        expertWindow = Int(info.expert_window)
        hasTokenizer = info.has_tokenizer != 0
        denseBytes = info.dense_bytes
        storeBytes = info.store_bytes
        recordBytes = info.record_bytes
        endIDs = Array(UnsafeBufferPointer(start: info.end_ids, count: info.end_id_count))
    }
}
