// Generated tokens.
import CMolkv
import Foundation

/// The tokens that continue texts, each computed when it is asked for.
///
/// Each iteration appends the prompts to their sequences, then new tokens. A session has one iteration at a time: a
/// later one ends it, and so does each call that changes a sequence; its next call then throws a ``MolkvError``.
///
/// If the task that iterates is cancelled, a running call ends early, and `next()` throws a `CancellationError`. After
/// an error, the session has the tokens that were returned.
public struct TokenSequence: AsyncSequence, Sendable {
    public typealias Element = Token

    let session: Session
    let prompts: [Prompt]
    let options: GenerationOptions

    public func makeAsyncIterator() -> Iterator { Iterator(self) }
}

/// One generated token.
public struct Token: Equatable, Sendable {
    /// Why a text ends: an end id or a stop string; or `maxNewTokens`, or the context is full.
    public enum Finish: Sendable { case stop, length }

    /// Index of the prompt that the token continues.
    public let sequence: Int
    public let id: Int32
    /// The text that the token completes, often empty. Always empty without a tokenizer.
    public let text: String
    /// `nil`: the text goes on.
    public let finish: Finish?
    /// `nil` unless `GenerationOptions.logprobs` is set.
    public let logprob: Double?
    /// The log-probabilities of the likeliest token ids, in descending order.
    public let best: [Logprob]

    public struct Logprob: Equatable, Sendable {
        public let id: Int32
        public let logprob: Double
    }

    init(_ token: molkv_token, withLogprobs: Bool) {
        sequence = Int(token.sequence)
        id = token.id
        text = String(decoding: UnsafeRawBufferPointer(start: token.text, count: token.text_length), as: UTF8.self)
        finish = token.finish == MOLKV_FINISH_STOP ? .stop : token.finish == MOLKV_FINISH_LENGTH ? .length : nil
        logprob = withLogprobs ? token.logprob : nil
        best = (0..<token.best_count).map { Logprob(id: token.best[$0].id, logprob: token.best[$0].logprob) }
    }
}

extension TokenSequence {
    /// A generation, which starts with its first token. Its state is used on the queue of the session.
    public final class Iterator: AsyncIteratorProtocol, @unchecked Sendable {
        private let tokens: TokenSequence
        private var generation: OpaquePointer?
        private var isFinished = false

        init(_ tokens: TokenSequence) { self.tokens = tokens }

        deinit {
            nonisolated(unsafe) let generation = generation
            tokens.session.queue.async { [session = tokens.session] in
                withExtendedLifetime(session) { molkv_generation_free(generation) }
            }
        }

        public func next() async throws -> Token? {
            let call = Call(tokens.session)
            return try await withTaskCancellationHandler {
                try await tokens.session.run { try self.next($0, call) }
            } onCancel: {
                call.cancel()
            }
        }

        private func next(_ session: OpaquePointer, _ call: Call) throws -> Token? {
            if isFinished, !call.isCancelled { return nil }
            isFinished = true  // unless this call returns a token
            defer { if isFinished { free() } }
            if call.isCancelled { throw CancellationError() }
            let isFirst = generation == nil
            if isFirst { try start(session) }
            var token = molkv_token()
            token.size = MemoryLayout<molkv_token>.size
            let status = call.run { molkv_generation_next(generation, &token) }
            if status == MOLKV_CANCELLED, isFirst, !call.isCancelled {  // `Session.run` calls again
                free()
                isFinished = false
            }
            if status == MOLKV_END { return nil }
            try check(status)
            isFinished = call.isCancelled
            return Token(token, withLogprobs: tokens.options.logprobs != nil)
        }

        private func start(_ session: OpaquePointer) throws {
            try Copies.use { copies in
                var options = try tokens.options.cValue(copies)
                let prompts = tokens.prompts.map { $0.cValue(copies) }
                try check(molkv_generate(session, prompts, prompts.count, &options, &generation))
            }
        }

        private func free() {
            molkv_generation_free(generation)
            generation = nil
        }
    }
}

/// A call that another thread can cancel, but only while it runs: the C API would cancel the next call otherwise.
private final class Call: @unchecked Sendable {
    private let session: Session
    private let lock = NSLock()
    private var isRunning = false
    private var wasCancelled = false

    init(_ session: Session) { self.session = session }

    var isCancelled: Bool { lock.withLock { wasCancelled } }

    func cancel() {
        lock.withLock {
            wasCancelled = true
            if isRunning { molkv_session_cancel(session.pointer) }
        }
    }

    func run(_ body: () -> molkv_status) -> molkv_status {
        lock.withLock { isRunning = !wasCancelled }
        guard isRunning else { return MOLKV_CANCELLED }
        defer { lock.withLock { isRunning = false } }
        return body()
    }
}
