/** Errors as one line that says what to do. */

import type { ErrorKind } from "../src/errors.js";
import { FieldError } from "./settings.js";

const ADVICE: Record<ErrorKind, string> = {
    bundle: "Check the connection and the server, then try again.",
    request: "Change the prompt or the settings, then try again.",
    provider: "Choose the other provider in the settings, or reload the page.",
    memory: "Close other tabs or shorten the prompt, then try again.",
};

/** Return an error as one line, for people. */
export function failureText(error: unknown): string {
    if (!(error instanceof Error)) return `${String(error)}. Reload the page.`;
    const message = error.message.split(/\s+/).join(" ");
    if (error instanceof FieldError) return message;
    const sentence = /[.!?]$/.test(message) ? message : `${message}.`;
    return `${sentence} ${isKind(kindOf(error)) ? ADVICE[kindOf(error) as ErrorKind] : "Reload the page."}`;
}

function kindOf(error: Error): unknown {
    return (error as { kind?: unknown }).kind;
}

function isKind(kind: unknown): kind is ErrorKind {
    return typeof kind === "string" && Object.hasOwn(ADVICE, kind);
}
