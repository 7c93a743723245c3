/** What the parts of tokenizer.json share: optional fields, and parts that name their type. */

import type { JsonValue } from "../../format/json.js";

/** Return the size of a text in UTF-8. */
export function byteLength(text: string): number {
    return new TextEncoder().encode(text).length;
}

/** Return a field of an object, or undefined if it is missing or null. */
export function findSet(object: JsonValue, name: string): JsonValue | undefined {
    const found = object.find(name);
    return found?.isNull ? undefined : found;
}

/** Return a boolean field of an object, or its default if it is missing. */
export function flag(object: JsonValue, name: string, otherwise: boolean): boolean {
    return object.find(name)?.boolean() ?? otherwise;
}

/** Return the type of a part. Throw a BundleError if it is not one of `expected`. */
export function typeOf<T extends string>(part: JsonValue, expected: readonly T[]): T {
    return part.get("type").oneOf(expected);
}

/** Return the parts of a Sequence, which are in the field `list`; or the part alone if it has another type. */
export function partsOf(part: JsonValue, list: string): readonly JsonValue[] {
    return part.get("type").text() === "Sequence" ? part.get(list).list() : [part];
}
