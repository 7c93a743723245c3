// Sessions.
import CMolkv
import Foundation

/// Texts that grow: token ids, KV cache and experts of each sequence.
///
/// Calls run one after the other, on a queue of the session, so no call blocks a thread of its caller. They throw a
/// ``MolkvError``.
public final class Session: Sendable {
    let model: Model
    let queue = DispatchQueue(label: "molkv.session")
    nonisolated(unsafe) let pointer: OpaquePointer

    init(_ model: Model, _ pointer: OpaquePointer) {
        self.model = model
        self.pointer = pointer
    }

    deinit { molkv_session_free(pointer) }

    /// Continue a text.
    public func generate(_ prompt: String, options: GenerationOptions = GenerationOptions()) -> TokenSequence {
        generate([.text(prompt)], options: options)
    }

    /// Continue several texts together, one for each sequence. Prompt i is appended to sequence i.
    public func generate(_ prompts: [Prompt], options: GenerationOptions = GenerationOptions()) -> TokenSequence {
        TokenSequence(session: self, prompts: prompts, options: options)
    }

    /// Return the token ids of a sequence: those of prompts, and those that were generated.
    public func ids(sequence: Int = 0) async throws -> [Int32] {
        try await run { session in
            var ids: UnsafePointer<Int32>?
            var count = 0
            try check(molkv_session_ids(session, Int32(clamping: sequence), &ids, &count))
            return Array(UnsafeBufferPointer(start: ids, count: count))
        }
    }

    /// Shorten a sequence to its first `length` tokens. Length 0 frees the sequence.
    public func rewind(to length: Int, sequence: Int = 0) async throws {
        try await run { try check(molkv_session_rewind($0, Int32(clamping: sequence), Int32(clamping: length))) }
    }

    /// Copy a sequence to the first free (empty) sequence. Return the index of the copy.
    public func fork(sequence: Int = 0) async throws -> Int {
        try await run { session in
            var copy: Int32 = 0
            try check(molkv_session_fork(session, Int32(clamping: sequence), &copy))
            return Int(copy)
        }
    }

    /// Save a sequence to a file that every driver can restore. The file appears when it is complete.
    public func save(to file: URL, sequence: Int = 0) async throws {
        try await run(file) { molkv_session_save($0, Int32(clamping: sequence), $1) }
    }

    /// Restore a saved file into an empty sequence.
    public func restore(from file: URL, sequence: Int = 0) async throws {
        try await run(file) { molkv_session_restore($0, Int32(clamping: sequence), $1) }
    }

    private func run(
        _ file: URL, _ call: @escaping @Sendable (OpaquePointer, UnsafePointer<CChar>) -> molkv_status
    ) async throws {
        try await run { session in try Copies.use { try check(call(session, try $0.copy(file.path))) } }
    }

    /// Run a call on the queue of the session.
    func run<Result: Sendable>(_ call: @escaping @Sendable (OpaquePointer) throws -> Result) async throws -> Result {
        try await withCheckedThrowingContinuation { continuation in
            queue.async { [self] in
                continuation.resume(
                    with: Swift.Result {
                        do {
                            return try model.use { try call(pointer) }
                        } catch is CancellationError {
                            // If an earlier call ended before it saw that it was cancelled, this call was cancelled
                            // instead. It changed nothing.
                            return try model.use { try call(pointer) }
                        }
                    })
            }
        }
    }
}
