/** The normalizer of a tokenizer: what changes a text before it is split into words. */

import type { JsonValue } from "../../format/json.js";
import { byteLength, partsOf, typeOf } from "./fields.js";
import { nfc } from "./unicode.js";

const mostGrowth = 64;
const nfcGrowth = 3; // U+1D160 has 4 bytes, and 12 bytes in NFC
const longestPrefix = 1000; // bytes

export type TextStep = (text: string) => string;

/** The factor by which steps can make a text longer. A hostile file with many steps could fill the memory. */
export class Growth {
    factor = 1;

    /** Add a step that replaces `from` bytes by `to` bytes. Refuses the step if the factor of all steps is above 64. */
    add(step: JsonValue, from: number, to: number): void {
        if (to > from) this.factor *= Math.ceil(to / from);
        if (this.factor > mostGrowth) {
            throw step.error("steps that make a text too long", `at most ${mostGrowth} times the length`);
        }
    }
}

/** Return a step of type Replace, in a normalizer or a decoder. It replaces a text, not a regular expression. */
export function readReplace(part: JsonValue, growth: Growth): TextStep {
    const pattern = part.get("pattern").get("String");
    const from = pattern.text();
    const to = part.get("content").text();
    if (from === "") throw pattern.error("an empty text", "a text to replace");
    if (to === "") throw part.get("content").error("an empty text", "a text");
    growth.add(part, byteLength(from), byteLength(to));
    return (text) => text.replaceAll(from, () => to);
}

function readStep(part: JsonValue, growth: Growth): TextStep {
    const type = typeOf(part, ["NFC", "Prepend", "Replace"]);
    if (type === "Replace") return readReplace(part, growth);
    if (type === "NFC") {
        growth.add(part, 1, nfcGrowth);
        return nfc;
    }
    const field = part.get("prepend");
    const prefix = field.text();
    const size = byteLength(prefix);
    if (size > longestPrefix) throw field.error(`a text of ${size} bytes`, `at most ${longestPrefix}`);
    return (text) => (text === "" ? text : prefix + text);
}

/** A list of the steps NFC, Prepend and Replace. */
export interface Normalizer {
    readonly normalize: TextStep;
    /** The largest factor by which the text becomes longer, without prefixes. */
    readonly growth: number;
}

/** Return the normalizer of the field `normalizer`: undefined, one step, or a Sequence. */
export function readNormalizer(field: JsonValue | undefined): Normalizer {
    const growth = new Growth();
    const steps = (field ? partsOf(field, "normalizers") : []).map((part) => readStep(part, growth));
    return { normalize: (text) => steps.reduce((changed, step) => step(changed), text), growth: growth.factor };
}
