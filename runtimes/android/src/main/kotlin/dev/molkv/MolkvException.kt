// The errors of the library.
package dev.molkv

/** A failure of the library. The message names the file or argument, what was found and what was expected. */
sealed class MolkvException(message: String) : RuntimeException(message) {
    /** The bundle is damaged, incomplete or not supported. */
    class Bundle(message: String) : MolkvException(message)

    /** An argument is impossible, or a saved session was refused. */
    class Request(message: String) : MolkvException(message)

    /** ONNX Runtime or its provider is missing, too old, fails, or computes wrong numbers. */
    class Provider(message: String) : MolkvException(message)

    /** The request needs more memory than there is. */
    class Memory(message: String) : MolkvException(message)

    /** The session was closed while the call ran. A cancelled coroutine gets a `CancellationException` instead. */
    class Cancelled(message: String) : MolkvException(message)

    /** The model or the session was closed before the call. */
    class Closed(message: String) : MolkvException(message)

    /** A bug of the library. */
    class Internal(message: String) : MolkvException(message)
}
