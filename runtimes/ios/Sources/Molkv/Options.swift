// The options of models, sessions and generations.
import CMolkv

/// How a model is opened.
public struct ModelOptions: Sendable {
    /// "cpu", "xnnpack" or "coreml", as far as ONNX Runtime has it.
    public var provider = "cpu"
    /// "cpu" or "coreml". `nil`: the best one for the provider.
    public var profile: String?
    /// Options that override the settings of the driver for the provider (docs/mobile.md).
    public var providerOptions: [String: String] = [:]
    /// Fail if another provider runs some of the nodes.
    public var requireProvider = false
    /// Do not compare a provider other than "cpu" with a golden text.
    public var skipProviderCheck = false
    /// Threads of one operator. 0: one for each physical core.
    public var threads = 0

    public init() {}
}

/// The size of a session.
public struct SessionOptions: Sendable {
    /// Sequences that run together.
    public var batchSize = 1
    /// The longest sequence, in tokens. `nil`: the context of the model.
    public var maxLength: Int?
    /// Tokens of a prompt in one call, which limits memory. `nil`: 128.
    public var prefillChunk: Int?

    public init() {}
}

/// How the next token is chosen (docs/bundle-format.md, "Sampling"). The defaults choose the likeliest token.
public struct Sampling: Equatable, Sendable {
    public var temperature = 0.0
    public var topK = 0
    public var topP = 1.0
    public var minP = 0.0
    public var repetitionPenalty = 1.0
    public var presencePenalty = 0.0
    public var frequencyPenalty = 0.0
    public var seed: UInt64 = 0
    /// Numbers that are added to the logits of token ids.
    public var logitBias: [Int32: Double] = [:]

    public init() {}

    init(defaultsOf model: OpaquePointer) {
        var defaults = molkv_sampling()
        defaults.size = MemoryLayout<molkv_sampling>.size
        precondition(molkv_sampling_defaults(model, &defaults) == MOLKV_OK)
        temperature = defaults.temperature
        topK = Int(defaults.top_k)
        topP = defaults.top_p
        minP = defaults.min_p
        repetitionPenalty = defaults.repetition_penalty
    }

    func cValue(_ copies: Copies) -> molkv_sampling {
        molkv_sampling(
            size: MemoryLayout<molkv_sampling>.size, temperature: temperature, top_k: Int32(clamping: topK),
            top_p: topP, min_p: minP, repetition_penalty: repetitionPenalty, presence_penalty: presencePenalty,
            frequency_penalty: frequencyPenalty, seed: seed,
            logit_bias: copies.copy(logitBias.map { molkv_logit_bias(id: $0.key, bias: $0.value) }),
            logit_bias_count: logitBias.count)
    }
}

/// What a text begins with: it is appended to a sequence.
public enum Prompt: Sendable {
    /// A text. If it begins a sequence, it gets the special tokens of the tokenizer.
    case text(String)
    /// Token ids. Without ids, a sequence that is not empty goes on.
    case ids([Int32])

    func cValue(_ copies: Copies) -> molkv_prompt {
        var prompt = molkv_prompt()
        switch self {
        case .text(let text):
            prompt.text = copies.copy(Array(text.utf8CString))
            prompt.text_length = text.utf8.count
        case .ids(let ids):
            prompt.ids = copies.copy(ids)
            prompt.id_count = ids.count
        }
        return prompt
    }
}

/// How texts are continued.
public struct GenerationOptions: Sendable {
    public var maxNewTokens = 128
    /// `nil`: `Model.defaultSampling`.
    public var sampling: Sampling?
    /// Token ids that end a text. `nil`: the end ids of the bundle.
    public var stopIDs: [Int32]?
    /// At most 16 stop strings of 1 to 1,000 characters. A text ends before them.
    public var stop: [String] = []
    /// Give tokens their log-probabilities, and those of this number of likeliest tokens.
    public var logprobs: Int?
    /// Give tokens their text, if the bundle has a tokenizer.
    public var text = true

    public init() {}

    func cValue(_ copies: Copies) throws -> molkv_generation_options {
        var options = molkv_generation_options()
        options.size = MemoryLayout<molkv_generation_options>.size
        options.max_new_tokens = Int32(clamping: maxNewTokens)
        options.sampling = sampling.map { copies.copy([$0.cValue(copies)]) }
        options.stop_ids = stopIDs.map(copies.copy)
        options.stop_id_count = stopIDs?.count ?? 0
        options.stop = copies.copy(try stop.map { Optional(try copies.copy($0)) })
        options.stop_count = stop.count
        options.with_logprobs = logprobs == nil ? 0 : 1
        options.best_count = Int32(clamping: logprobs ?? 0)
        options.without_text = text ? 0 : 1
        return options
    }
}
