/** Values of the caller as values of a template. */

import { RequestError } from "../../errors.js";
import { Dict, type Value } from "./values.js";

const MAX_DEPTH = 500;
// JSON writes larger numbers with an exponent, so that they are read as floats.
const MAX_INTEGER = 1e21;

/**
 * Return a copy of a value of JSON. The template gets no object of the caller.
 *
 * @throws RequestError It is a value of another kind, or nests too deeply.
 */
export function inputValue(value: unknown, where: string, depth = 0): Value {
    if (depth > MAX_DEPTH) {
        throw new RequestError(`${where}: nests more than ${MAX_DEPTH} values, expected fewer`);
    }
    if (value === null || typeof value === "boolean" || typeof value === "string" || typeof value === "bigint") {
        return value;
    }
    if (typeof value === "number" && Number.isFinite(value)) {
        return Number.isInteger(value) && Math.abs(value) < MAX_INTEGER ? BigInt(value) : value;
    }
    if (Array.isArray(value)) {
        return value.map((each) => inputValue(each, where, depth + 1));
    }
    if (typeof value === "object" && isPlain(value)) {
        const fields = Object.entries(value).filter(([, each]) => each !== undefined);
        return new Dict(fields.map(([key, each]) => [key, inputValue(each, where, depth + 1)]));
    }
    throw new RequestError(`${where}: found a value of another kind (${typeof value}), expected values of JSON`);
}

function isPlain(value: object): boolean {
    const prototype: unknown = Object.getPrototypeOf(value);
    return prototype === null || Object.getPrototypeOf(prototype) === null;
}
