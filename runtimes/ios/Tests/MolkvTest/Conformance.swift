// The conformance suite (runtimes/conformance/README.md) with the Swift package.
import Foundation
import Molkv

/// Runs the cases of a folder. Models are opened when they are first used.
final class Conformance {
    private let folder: URL
    private let suite: Suite
    private var models: [String: Model] = [:]

    init(folder: URL) throws {
        self.folder = folder
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        suite = try decoder.decode(Suite.self, from: Data(contentsOf: folder.appendingPathComponent("cases.json")))
    }

    /// Print a line for each case, then the counts. Return whether no case failed.
    func run() async -> Bool {
        var passed = 0
        var skipped = 0
        for each in suite.cases {
            let name = each.name ?? ""
            do {
                let wrong = try await run(each)
                print(wrong.isEmpty ? "ok \(name)" : "FAIL \(name): \(wrong)")
                passed += wrong.isEmpty ? 1 : 0
            } catch let skip as Skipped {
                print("skip \(name): \(skip.reason)")
                skipped += 1
            } catch {
                print("FAIL \(name): \(error)")
            }
        }
        print("\(passed) of \(suite.cases.count) cases passed; \(skipped) skipped")
        return passed + skipped == suite.cases.count
    }

    /// Return what is wrong; an empty text if the case passed.
    private func run(_ each: Case) async throws -> String {
        if each.lookup != nil { throw Skipped(reason: "there is no prompt lookup") }
        switch each.kind {
        case "golden":
            _ = try model(each).selfTest()
            return ""
        case "tokens": return compare(each, try await tokens(try model(each), each))
        case "calls":
            var wrong = ""
            for call in each.calls! { wrong += compare(call, try await tokens(try model(each), call)) }
            return wrong
        case "text": return try await text(each)
        case "refused": return try await expect(each) { try await refused(each) }
        case "session": return try await session(each)
        case "session-refused": return try await sessionRefused(each)
        case "damage": return try await damage(each)
        case "sequences": throw Skipped(reason: "the package has no logits")
        case "chat": throw Skipped(reason: "there is no template engine")
        default: return "unknown kind \(each.kind ?? "")"
        }
    }

    private func model(_ each: Case) throws -> Model {
        let name = each.bundle!
        if let model = models[name] { return model }
        var options = ModelOptions()
        options.profile = ["coreml", "nnapi"].contains(name) ? name : nil
        let model = try Model(path: folder.appendingPathComponent("bundles/\(name)"), options: options)
        models[name] = model
        return model
    }

    private func tokens(_ model: Model, _ each: Case) async throws -> [Token] {
        var size = SessionOptions()
        size.batchSize = each.prompts!.count
        let prompts = each.prompts!.map(Prompt.ids)
        return try await collect(model.session(size).generate(prompts, options: each.options()))
    }

    private func text(_ each: Case) async throws -> String {
        let ids = try model(each).tokenize(each.prompt!)
        if ids != each.promptIds { return "the ids of the prompt are \(ids), expected \(each.promptIds!)" }
        var options = try each.options()
        options.stopIDs = nil
        options.text = true
        let tokens = try await collect(model(each).session().generate(each.prompt!, options: options))
        let expected = each.expected!.list[0]
        let pieces = tokens.map(\.text).filter { !$0.isEmpty }
        if expected.compared == expected.ids?.count, pieces.map(bytes) != expected.pieces!.map(bytes) {
            return "the pieces are \(pieces), expected \(expected.pieces!)"
        }
        return compare(each, tokens)
    }

    private func refused(_ each: Case) async throws {
        guard let text = each.text else {
            _ = try await tokens(model(each), each)
            return
        }
        _ = try await collect(model(each).session().generate(text))
    }

    private func session(_ each: Case) async throws -> String {
        try await inTemporaryFolder { place in
            let own = place.appendingPathComponent("own.safetensors")
            for file in [folder.appendingPathComponent("sessions/\(each.session!)"), own] {
                let session = try model(each).session()
                try await session.restore(from: file)
                let ids = try await session.ids()
                if ids != each.ids { return "\(file.lastPathComponent) has the ids \(ids)" }
                let tokens = try await collect(session.generate([.ids(each.then!)], options: each.options()))
                let wrong = compare(each, tokens)
                if !wrong.isEmpty { return "\(file.lastPathComponent): \(wrong)" }
                try await session.rewind(to: ids.count)
                try await session.save(to: own)
            }
            return ""
        }
    }

    private func sessionRefused(_ each: Case) async throws -> String {
        try await inTemporaryFolder { place in
            let copy = place.appendingPathComponent("copy")
            try FileManager.default.copyItem(at: folder.appendingPathComponent("sessions/\(each.session!)"), to: copy)
            for patch in each.patches! { try patch.apply(to: copy, bundles: folder) }
            let session = try model(each).session()
            return try await expect(each) { try await session.restore(from: copy) }
        }
    }

    private func damage(_ each: Case) async throws -> String {
        try await inTemporaryFolder { place in
            let bundles = folder.appendingPathComponent("bundles")
            let copy = place.appendingPathComponent("bundle")
            try FileManager.default.copyItem(at: bundles.appendingPathComponent(each.bundle!), to: copy)
            for patch in each.patches! {
                try patch.apply(to: copy.appendingPathComponent(patch.file!), bundles: bundles)
            }
            return try await expect(each) { _ = try await tokens(Model(path: copy), each) }
        }
    }

    /// Compare tokens, up to the first one that is not compared.
    private func compare(_ each: Case, _ tokens: [Token]) -> String {
        for (index, expected) in each.expected!.list.enumerated() {
            let own = tokens.filter { $0.sequence == index }
            let ids = expected.ids!
            let compared = expected.compared!
            if own.prefix(compared).map(\.id) != Array(ids.prefix(compared)) {
                return "sequence \(index): \(own.map(\.id)), expected \(ids)"
            }
            let finish = own.last?.finish.map { "\($0)" }
            if compared == ids.count, own.count != compared || finish != expected.finish {
                return "sequence \(index): \(own.count) tokens, \(finish ?? "no finish")"
            }
            let limit = 2 * (suite.limits[each.bundle ?? ""] ?? 0)
            for (token, logprobs) in zip(own.prefix(compared), expected.logprobs ?? []) {
                let found = [token.logprob ?? .nan] + token.best.map(\.logprob)
                let isNear = found.count == logprobs.count && zip(found, logprobs).allSatisfy { abs($0 - $1) <= limit }
                if !isNear { return "sequence \(index): the log-probabilities \(found), expected \(logprobs)" }
            }
        }
        return ""
    }

    private func expect(_ each: Case, _ call: () async throws -> Void) async throws -> String {
        do {
            try await call()
        } catch let error as MolkvError {
            let found = String("\(error)".prefix { $0 != "(" })
            return found == each.error ? "" : "found \(error), expected an error of kind \(each.error!)"
        }
        return "found no error, expected an error of kind \(each.error!)"
    }
}

func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

func collect(_ sequence: TokenSequence) async throws -> [Token] {
    var tokens: [Token] = []
    for try await token in sequence { tokens.append(token) }
    return tokens
}

func inTemporaryFolder<Result>(_ use: (URL) async throws -> Result) async throws -> Result {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    return try await use(folder)
}
