// The cases of runtimes/conformance/cases.json.
import Foundation
import Molkv

struct Suite: Decodable {
    let limits: [String: Double]
    let cases: [Case]
}

/// A case, or one of the calls of a case of kind `calls`. The fields depend on the kind.
struct Case: Decodable {
    let name, kind, bundle, error, prompt, text, session: String?
    let prompts: [[Int32]]?
    let promptIds, stopIds, ids, then: [Int32]?
    let maxNewTokens, lookup, logprobs: Int?
    let stop: [String]?
    let sampling: SamplingFields?
    let expected: OneOrMany<Expected>?
    let patches: [Patch]?
    let calls: [Case]?

    /// The options of a generation without end ids, unless the case has some.
    func options() throws -> GenerationOptions {
        var options = GenerationOptions()
        options.maxNewTokens = maxNewTokens ?? 3
        options.sampling = try sampling?.sampling()
        options.stopIDs = stopIds ?? []
        options.stop = stop ?? []
        options.logprobs = logprobs
        options.text = !(stop ?? []).isEmpty
        return options
    }
}

struct Expected: Decodable {
    let ids: [Int32]?
    let finish: String?
    let compared: Int?
    let pieces: [String]?
    let logprobs: [[Double]]?
}

struct Patch: Decodable {
    let file, insert, from: String?
    let offset, delete: Int?

    /// Change a file: replace bytes, remove it, or replace it by the file of another bundle.
    func apply(to file: URL, bundles: URL) throws {
        guard from == nil, let offset, let delete, let insert else {
            try FileManager.default.removeItem(at: file)
            guard let from else { return }
            let other = bundles.appendingPathComponent(from).appendingPathComponent(file.lastPathComponent)
            return try FileManager.default.copyItem(at: other, to: file)
        }
        var content = try Data(contentsOf: file)
        let digits = Array(insert)
        let bytes = stride(from: 0, to: digits.count, by: 2).map { UInt8(String(digits[$0...$0 + 1]), radix: 16)! }
        content.replaceSubrange(offset..<offset + delete, with: bytes)
        try content.write(to: file)
    }
}

struct SamplingFields: Decodable {
    let temperature, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty: Double?
    let topK: Int?
    let seed: String
    let logitBias: [String: Double]?

    func sampling() throws -> Sampling {
        guard let seed = UInt64(seed) else { throw Skipped(reason: "a seed is a UInt64") }
        var result = Sampling()
        result.seed = seed
        result.temperature = temperature ?? result.temperature
        result.topK = topK ?? result.topK
        result.topP = topP ?? result.topP
        result.minP = minP ?? result.minP
        result.repetitionPenalty = repetitionPenalty ?? result.repetitionPenalty
        result.presencePenalty = presencePenalty ?? result.presencePenalty
        result.frequencyPenalty = frequencyPenalty ?? result.frequencyPenalty
        for (id, bias) in logitBias ?? [:] { result.logitBias[Int32(id)!] = bias }
        return result
    }
}

/// A JSON value, or a list of them.
struct OneOrMany<Element: Decodable>: Decodable {
    let list: [Element]

    init(from decoder: any Decoder) throws {
        do {
            list = try [Element](from: decoder)
        } catch DecodingError.typeMismatch {
            list = [try Element(from: decoder)]
        }
    }
}

/// Thrown by a case that the package cannot express.
struct Skipped: Error {
    let reason: String
}
