// The errors of the package.
import CMolkv
import Foundation

/// A failure. The message names the file or argument, what was found and what was expected.
///
/// A call that a cancelled task made throws a `CancellationError` instead.
public enum MolkvError: LocalizedError, Equatable {
    /// The bundle is damaged, incomplete or not supported.
    case bundle(String)
    /// An argument is impossible, or a saved session was refused.
    case request(String)
    /// ONNX Runtime or its provider is missing, too old, fails, or computes wrong numbers.
    case provider(String)
    /// The request needs more memory than there is.
    case memory(String)
    /// A bug of the library.
    case bug(String)

    /// What is wrong.
    public var message: String {
        switch self {
        case .bundle(let message), .request(let message), .provider(let message), .memory(let message),
            .bug(let message):
            message
        }
    }

    public var errorDescription: String? { message }
}

/// Throw the error of a status. A `report` takes the place of the message.
func check(_ status: molkv_status, report: UnsafePointer<CChar>? = nil) throws {
    guard status != MOLKV_OK else { return }
    let message = String(cString: report ?? molkv_last_error())
    switch status {
    case MOLKV_ERROR_BUNDLE: throw MolkvError.bundle(message)
    case MOLKV_ERROR_REQUEST: throw MolkvError.request(message)
    case MOLKV_ERROR_PROVIDER: throw MolkvError.provider(message)
    case MOLKV_ERROR_MEMORY: throw MolkvError.memory(message)
    case MOLKV_CANCELLED: throw CancellationError()
    default: throw MolkvError.bug(message)
    }
}
