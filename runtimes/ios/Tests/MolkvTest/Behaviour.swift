// Tests of the package itself: iteration, cancellation, lifetimes, errors and Unicode.
import Foundation
import Molkv

/// A test that fails.
struct Failure: Error, CustomStringConvertible {
    let description: String
}

/// The tests. They use the bundle "bytes": byte-level BPE whose first 256 ids are single bytes.
struct Behaviour {
    private let bundle: URL
    private let model: Model
    private let greedy: GenerationOptions

    init(bundles: URL) throws {
        bundle = bundles.appendingPathComponent("bytes")
        model = try Model(path: bundle)
        var options = GenerationOptions()
        options.maxNewTokens = 8
        options.sampling = Sampling()
        options.stopIDs = []
        greedy = options
    }

    /// Run the tests, and print a line for each. Return whether none failed.
    func run() async -> Bool {
        let tests: [(String, () async throws -> Void)] = [
            ("info", info),
            ("iteration", iteration),
            ("a later iteration ends an earlier one", laterIteration),
            ("cancellation during a prompt", cancelPrompt),
            ("cancellation at any time", cancelAnyTime),
            ("a cancelled task", cancelledTask),
            ("sessions beside each other", concurrentSessions),
            ("sequences", sequences),
            ("lifetimes", lifetimes),
            ("errors", errors),
            ("Unicode", unicode),
        ]
        var passed = 0
        for (name, test) in tests {
            do {
                try await test()
                print("ok \(name)")
                passed += 1
            } catch {
                print("FAIL \(name): \(error)")
            }
        }
        print("\(passed) of \(tests.count) tests of the package passed")
        return passed == tests.count
    }

    private func info() throws {
        let manifest = try String(contentsOf: bundle.appendingPathComponent("manifest.json"), encoding: .utf8)
        let info = model.info
        try require(manifest.contains("\"model_type\": \"\(info.modelType)\""))
        try require(manifest.contains("\"vocab_size\": \(info.vocabSize),"))
        try require(info.profile == "cpu" && info.hasTokenizer && !info.placements.isEmpty && !info.endIDs.isEmpty)
        let store = bundle.appendingPathComponent("experts-00001-of-00001.safetensors")
        try require(info.storeBytes == Int64(Data(contentsOf: store).count))
        try require(model.selfTest().split(separator: "\n").count > 3)
    }

    private func iteration() async throws {
        let session = try model.session()
        let sequence = session.generate("the owl", options: greedy)
        try await require(session.ids().isEmpty)
        let tokens = try await collect(sequence)
        try require(tokens.map(\.finish) == Array(repeating: nil, count: 7) + [.length])
        let whole = try model.tokenize("the owl") + tokens.map(\.id)
        try await require(session.ids() == whole)
        try await session.rewind(to: 0)
        var taken: [Token] = []
        for try await token in sequence {
            taken.append(token)
            if taken.count == 3 { break }
        }
        try require(taken == Array(tokens.prefix(3)))
        try await require(session.ids() == Array(whole.dropLast(5)))
        var rest = greedy
        rest.maxNewTokens = 5
        try await require(collect(session.generate([.ids([])], options: rest)).map(\.id) == tokens.suffix(5).map(\.id))
        let iterator = sequence.makeAsyncIterator()
        for _ in 1...8 { try await require(iterator.next() != nil) }
        for _ in 1...2 { try await require(iterator.next() == nil) }
    }

    private func laterIteration() async throws {
        let session = try model.session()
        let first = session.generate("the", options: greedy).makeAsyncIterator()
        _ = try await first.next()
        try await require(collect(session.generate("owl", options: greedy)).count == 8)
        try await refuses("request") { _ = try await first.next() }
        try await require(first.next() == nil)
    }

    private func cancelPrompt() async throws {
        var size = SessionOptions()
        size.prefillChunk = 1  // many calls for a prompt
        let session = try model.session(size)
        let long = (0..<Int32(model.info.contextLength - 20)).map { $0 % 200 }
        var interrupted = 0
        for _ in 1...40 {
            let start = ContinuousClock.now
            try await require(session.generate([.ids(long)], options: greedy).makeAsyncIterator().next() != nil)
            let time = start.duration(to: .now) / 3
            try await session.rewind(to: 0)
            let tokens = try await interrupt(session.generate([.ids(long)], options: greedy), after: time)
            let kept = try await session.ids().count
            try require(kept == 0 ? tokens == 0 : kept == long.count + tokens)
            interrupted += kept == 0 ? 1 : 0
            try await session.rewind(to: 0)
            try await require(collect(session.generate("the owl", options: greedy)).count == 8)
            try await session.rewind(to: 0)
        }
        try require(interrupted > 5)
    }

    private func cancelAnyTime() async throws {
        let session = try model.session()
        let start = ContinuousClock.now
        let expected = try await collect(session.generate("the owl", options: greedy))
        let time = start.duration(to: .now)
        for round in 0..<300 {
            try await session.rewind(to: 0)
            _ = try await interrupt(session.generate("the owl", options: greedy), after: time * round / 300)
            try await session.rewind(to: 0)
            try await require(collect(session.generate("the owl", options: greedy)) == expected)
        }
    }

    private func cancelledTask() async throws {
        let session = try model.session()
        let iterator = session.generate("the owl", options: greedy).makeAsyncIterator()
        _ = try await iterator.next()
        let task = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            return try await iterator.next()
        }
        do {
            throw Failure(description: "found \(String(describing: try await task.value)), expected an error")
        } catch is CancellationError {}
        try await require(collect(session.generate("the owl", options: greedy)).count == 8)
    }

    /// Iterate in a task that is cancelled after some time. Return the number of tokens.
    private func interrupt(_ sequence: TokenSequence, after time: Duration) async throws -> Int {
        let iterator = sequence.makeAsyncIterator()
        let task = Task {
            var count = 0
            do {
                while try await iterator.next() != nil { count += 1 }
            } catch is CancellationError {
            } catch {
                return -1
            }
            return count
        }
        try? await Task.sleep(for: time)
        task.cancel()
        let count = await task.value
        try await require(iterator.next() == nil)
        return count
    }

    private func concurrentSessions() async throws {
        let expected = try await collect(model.session().generate("the owl", options: greedy))
        let (model, greedy) = (model, greedy)
        try await withThrowingTaskGroup(of: Bool.self) { group in
            for round in 0..<20 {
                group.addTask {
                    if round % 10 == 0 { return try !model.selfTest().isEmpty }
                    return try await collect(model.session().generate("the owl", options: greedy)) == expected
                }
            }
            for try await isRight in group { try require(isRight) }
        }
    }

    private func sequences() async throws {
        let expected = try await collect(model.session().generate("the owl", options: greedy)).map(\.id)
        var size = SessionOptions()
        size.batchSize = 2
        let session = try model.session(size)
        let tokens = try await collect(session.generate([.text("the owl"), .text("the owl")], options: greedy))
        for index in 0...1 { try require(tokens.filter { $0.sequence == index }.map(\.id) == expected) }
        try await session.rewind(to: 3)
        try await session.rewind(to: 0, sequence: 1)
        try await require(session.fork() == 1)
        try await require(session.ids(sequence: 0) == session.ids(sequence: 1))
        try await inTemporaryFolder { folder in
            let file = folder.appendingPathComponent("🦉")
            try await session.save(to: file, sequence: 1)
            try await session.rewind(to: 0)
            try await session.restore(from: file)
        }
        try await require(session.ids() == Array(model.tokenize("the owl").prefix(3)))
    }

    private func lifetimes() async throws {
        func openFiles() throws -> Int {  // of the bundle
            let (manager, folder) = (FileManager.default, "/proc/self/fd")
            return try manager.contentsOfDirectory(atPath: folder).filter {
                (try? manager.destinationOfSymbolicLink(atPath: "\(folder)/\($0)"))?.contains("/bytes/") ?? false
            }.count
        }
        let before = try openFiles()
        let expected = try await collect(model.session().generate("the owl", options: greedy))
        weak var weakModel: Model?
        weak var weakSession: Session?
        do {
            var iterator: TokenSequence.Iterator
            do {
                let other = try Model(path: bundle)
                let session = try other.session()
                (weakModel, weakSession) = (other, session)
                iterator = session.generate("the owl", options: greedy).makeAsyncIterator()
            }
            try require(openFiles() > before)
            for token in expected.prefix(4) { try await require(iterator.next() == token) }
            try require(weakModel != nil && weakSession != nil)
        }
        for _ in 1...1000 where try openFiles() != before { try await Task.sleep(for: .milliseconds(1)) }
        try require(weakModel == nil && weakSession == nil)
        try require(openFiles() == before)
    }

    private func errors() async throws {
        let missing = URL(fileURLWithPath: "/missing/🦉")
        try await refuses("bundle", "/missing/🦉") { _ = try Model(path: missing) }
        var options = ModelOptions()
        options.provider = "abacus"
        try await refuses("provider", "abacus") { _ = try Model(path: bundle, options: options) }
        options = ModelOptions()
        options.providerOptions = ["speed": "1"]
        try await refuses("request", "speed") { _ = try Model(path: bundle, options: options) }
        options.providerOptions = ["speed": "\0"]
        try await refuses("request", "NUL") { _ = try Model(path: bundle, options: options) }
        var size = SessionOptions()
        size.batchSize = .max
        do {
            _ = try model.session(size)
            throw Failure(description: "found a session of \(Int.max) sequences")
        } catch is MolkvError {}
        let session = try model.session()
        try await refuses("request") { _ = try await session.ids(sequence: 1) }
        try await refuses("request") { try await session.rewind(to: .max) }
        try await refuses("request") { try await session.restore(from: missing) }
        var none = greedy
        none.maxNewTokens = 0
        try await refuses("request") { _ = try await collect(session.generate("a", options: none)) }
        var stop = greedy
        stop.stop = ["a\0"]
        try await refuses("request", "NUL") { _ = try await collect(session.generate("a", options: stop)) }
        try await refuses("request") { _ = try await collect(session.generate([], options: greedy)) }
        try await refuses("request") { _ = try model.detokenize([Int32.max]) }
        let error = MolkvError.request("why") as any Error
        try require(error.localizedDescription == "why")
        try await require(collect(session.generate("the owl", options: greedy)).count == 8)
    }

    private func unicode() async throws {
        // GPT-2 numbers the bytes: first 0x21 to 0x7e, 0xa1 to 0xac and 0xae to 0xff, then the others from 0 on.
        let owl: [Int32] = [172, 253, 99, 231]
        try require(model.tokenize("🦉\0", addSpecialTokens: false) == owl + [188])
        for text in ["", "🦉\0怀 é e\u{301}\n", String(repeating: "🦉", count: 1000)] {
            let ids = try model.tokenize(text, addSpecialTokens: false)
            try require(bytes(model.detokenize(ids)) == bytes(text))
        }
        var options = greedy
        options.maxNewTokens = 3
        options.sampling?.logitBias = [188: 1e6]
        let tokens = try await collect(model.session().generate("🦉\0", options: options))
        try require(tokens.map(\.text).joined() == "\0\0\0")
        options.stop = ["🦉"]
        options.sampling?.logitBias = [172: 1e6]
        try await require(collect(model.session().generate("a", options: options)).map(\.id) == [172, 172, 172])
        options.text = false
        options.stop = []
        try await require(collect(model.session().generate("a", options: options)).allSatisfy { $0.text.isEmpty })
    }

    private func require(_ isTrue: Bool, line: Int = #line) throws {
        if !isTrue { throw Failure(description: "the check in line \(line) failed") }
    }

    private func refuses(
        _ kind: String, _ part: String = "", line: Int = #line, _ call: () async throws -> Void
    ) async throws {
        do {
            try await call()
        } catch let error as MolkvError {
            guard "\(error)".hasPrefix("\(kind)("), part.isEmpty || error.message.contains(part) else {
                throw Failure(description: "line \(line): found \(error)")
            }
            return
        }
        throw Failure(description: "line \(line): found no error")
    }
}
