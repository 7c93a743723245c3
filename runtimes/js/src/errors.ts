/** The kinds of errors of docs/bundle-format.md, "Errors". */
export type ErrorKind = "bundle" | "request" | "provider" | "memory";

/**
 * The base class of all errors that this package throws, except the reason of an `AbortSignal`.
 *
 * The message is one line. It names the file or the argument, what was found, what was expected, and what to do.
 */
export class MolkvError extends Error {
    readonly kind: ErrorKind;

    constructor(kind: ErrorKind, message: string, options?: ErrorOptions) {
        super(message, options);
        this.name = new.target.name;
        this.kind = kind;
    }
}

/** The bundle is damaged, incomplete or not supported, or its server cannot be reached. */
export class BundleError extends MolkvError {
    constructor(message: string, options?: ErrorOptions) {
        super("bundle", message, options);
    }
}

/** An argument is impossible, or a saved session was refused. */
export class RequestError extends MolkvError {
    constructor(message: string, options?: ErrorOptions) {
        super("request", message, options);
    }
}

/** ONNX Runtime or its provider is missing, too old, fails, or computes wrong numbers. */
export class ProviderError extends MolkvError {
    constructor(message: string, options?: ErrorOptions) {
        super("provider", message, options);
    }
}

/** The request needs more memory than there is. */
export class MemoryError extends MolkvError {
    constructor(message: string, options?: ErrorOptions) {
        super("memory", message, options);
    }
}
