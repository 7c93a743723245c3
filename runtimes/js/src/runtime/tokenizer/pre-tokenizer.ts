/** The pre-tokenizer of a tokenizer: the split of a text into words, which BPE then encodes one by one. */

import { type JsonValue, quoted } from "../../format/json.js";
import { charactersOfBytes } from "./byte-level.js";
import { flag, partsOf, typeOf } from "./fields.js";
import { findWordPattern, gpt2Words, type WordPattern } from "./word-pattern.js";

/** The fields that the pre-tokenizer and the decoder of type Metaspace share. */
export interface Metaspace {
    readonly replacement: string;
    /** When the replacement is added at the start of a text. */
    readonly scheme: "always" | "first" | "never";
    readonly split: boolean;
}

/** Whether a text is exactly one character. */
export function isOneCharacter(text: string): boolean {
    return text !== "" && text.length === String.fromCodePoint(text.codePointAt(0)!).length;
}

/** Return the fields of a part of type Metaspace. */
export function readMetaspace(part: JsonValue): Metaspace {
    const replacement = part.get("replacement").text();
    if (!isOneCharacter(replacement)) throw part.get("replacement").error(quoted(replacement), "one character");
    const split = flag(part, "split", true);
    const scheme = part.find("prepend_scheme")?.oneOf(["always", "first", "never"] as const) ?? "always";
    if (!flag(part, "add_prefix_space", true) && scheme !== "never") {
        throw part.get("add_prefix_space").error("false", 'the prepend_scheme "never" beside it');
    }
    return { replacement, scheme, split };
}

/** Return the words of a text, or of a word of an earlier step. `isFirst`: the text begins where the caller's does. */
type Split = (text: string, isFirst: boolean) => string[];

/** Split before each separator (Metaspace) or after each (Split with MergedWithPrevious). */
function splitAt(text: string, separator: string, isBefore: boolean): string[] {
    const words: string[] = [];
    let start = 0;
    for (let found = text.indexOf(separator); found >= 0; found = text.indexOf(separator, found + separator.length)) {
        const border = isBefore ? found : found + separator.length;
        if (border > start) words.push(text.slice(start, border));
        start = border;
    }
    if (start < text.length) words.push(text.slice(start));
    return words;
}

function metaspaceSplit({ replacement, scheme, split }: Metaspace): Split {
    return (text, isFirst) => {
        const replaced = text.replaceAll(" ", () => replacement);
        const adds = scheme === "always" || (scheme === "first" && isFirst);
        const word = adds && !replaced.startsWith(replacement) ? replacement + replaced : replaced;
        return split ? splitAt(word, replacement, true) : [word];
    };
}

function byteLevelSplit(addPrefixSpace: boolean, pattern: WordPattern | undefined): Split {
    return (text) => {
        const whole = addPrefixSpace && !text.startsWith(" ") ? ` ${text}` : text;
        return (pattern ? pattern(whole) : [whole]).map(charactersOfBytes);
    };
}

function readSplit(part: JsonValue): Split {
    if (part.get("invert").boolean()) throw part.get("invert").error("true", "false");
    const separator = part.get("pattern").find("String");
    if (separator) {
        const text = separator.text();
        if (text === "") throw separator.error("an empty text", "a text");
        part.get("behavior").oneOf(["MergedWithPrevious"]);
        return (word) => splitAt(word, text, false);
    }
    const expression = part.get("pattern").get("Regex");
    const pattern = findWordPattern(expression.text());
    if (!pattern)
        throw expression.error(quoted(expression.text()), "the regular expression of GPT-2, Llama 3 or Qwen 2");
    part.get("behavior").oneOf(["Isolated"]);
    return pattern;
}

/** Return the split of the field `pre_tokenizer`: undefined, or one or a Sequence of ByteLevel, Metaspace and Split. */
export function readPreTokenizer(field: JsonValue | undefined): Split {
    const parts = field ? partsOf(field, "pretokenizers") : [];
    const isAlone = parts.length === 1; // a value of the document that stays alive keeps the whole document alive
    let hasByteLevel = false;
    const steps = parts.map((part): Split => {
        const type = typeOf(part, ["ByteLevel", "Metaspace", "Split"]);
        if (type === "Split") return readSplit(part);
        if (type === "Metaspace") {
            const metaspace = readMetaspace(part);
            if (!isAlone) throw part.error('"Metaspace"', "no other step beside it");
            return metaspaceSplit(metaspace);
        }
        // Each such step makes a text up to twice as long.
        if (hasByteLevel) throw part.error('"ByteLevel" a second time', "it once");
        hasByteLevel = true;
        const addPrefixSpace = part.get("add_prefix_space").boolean();
        return byteLevelSplit(addPrefixSpace, flag(part, "use_regex", true) ? gpt2Words : undefined);
    });
    return (text, isFirst) =>
        steps.reduce((words, step) => words.flatMap((word) => step(word, isFirst)), text === "" ? [] : [text]);
}
