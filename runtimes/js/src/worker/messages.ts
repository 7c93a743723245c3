/**
 * The messages between a caller and the worker that runs its model.
 *
 * The caller sends a `Request` and gets one `Reply` with the same number. An iterator of the worker is an object like a
 * session: the caller asks it for one item at a time.
 */

import { BundleError, MemoryError, MolkvError, ProviderError, RequestError, type ErrorKind } from "../errors.js";
import type { ModelStats, Progress } from "../options.js";
import type { Description } from "../source.js";

/** What the caller needs to know of the worker's model. */
export interface ModelFacts {
    readonly where: string;
    readonly hasTokenizer: boolean;
    readonly hasChatTemplate: boolean;
}

/** The change of a session since the last reply: its first `kept` ids are as before, and `added` follow them. */
export interface SessionState {
    readonly kind: "session";
    readonly kept: number;
    readonly added: readonly number[];
    readonly messages: readonly Readonly<Record<string, string>>[] | undefined;
}

export interface SequencesState {
    readonly kind: "sequences";
    readonly maxLength: number;
    readonly lengths: readonly number[];
}

/** The state of an object of the worker, which the caller's copy of the object shows. */
export type ObjectState = SessionState | SequencesState;

export type Operation =
    | {
          readonly do: "open";
          readonly source: Description;
          readonly backend: Description;
          readonly prefillChunk?: number;
      }
    /** Call a method. Its result is a value, or an object of the worker. */
    | { readonly do: "call"; readonly object: number; readonly method: string; readonly args: readonly unknown[] }
    /** Call a method that returns an iterator. */
    | { readonly do: "iterate"; readonly object: number; readonly method: string; readonly args: readonly unknown[] }
    | { readonly do: "next"; readonly iterator: number }
    | { readonly do: "return"; readonly iterator: number };

/** `abort` ends the request with this number. The last argument of a method gets a signal and a listener if asked. */
export type Request =
    | {
          readonly number: number;
          readonly operation: Operation;
          readonly withSignal: boolean;
          readonly withProgress: boolean;
      }
    | { readonly abort: number };

export interface SentError {
    /** "aborted": the signal of the request ended it. "bug": an error that is not of this package. */
    readonly kind: ErrorKind | "aborted" | "bug";
    readonly message: string;
}

export type Reply =
    | {
          readonly number: number;
          /** The result: a value, the number of a new object or iterator, or an item. */
          readonly value?: unknown;
          readonly done?: boolean;
          readonly error?: SentError;
          /** The object of the call, and its state after the call. */
          readonly state?: { readonly object: number; readonly value: ObjectState };
          readonly stats?: ModelStats;
      }
    | { readonly number: number; readonly progress: Progress | number };

/** Convert an error to a message. */
export function sentError(error: unknown, aborted: boolean): SentError {
    if (aborted) {
        return { kind: "aborted", message: "" };
    }
    if (error instanceof MolkvError) {
        return { kind: error.kind, message: error.message };
    }
    return { kind: "bug", message: error instanceof Error ? `${error.name}: ${error.message}` : String(error) };
}

/** Convert a message to the error that it describes. */
export function receivedError(sent: SentError): Error {
    switch (sent.kind) {
        case "bundle":
            return new BundleError(sent.message);
        case "request":
            return new RequestError(sent.message);
        case "provider":
            return new ProviderError(sent.message);
        case "memory":
            return new MemoryError(sent.message);
        default:
            return new Error(sent.message);
    }
}
