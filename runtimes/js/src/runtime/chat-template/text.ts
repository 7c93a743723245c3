/** Values as texts: Python's `str` and `repr`, and JSON. */

import { fail, unsupported } from "./failures.js";
import { checkWidth } from "./limits.js";
import { floatText, integerText } from "./numbers.js";
import {
    Dict,
    DictView,
    isInteger,
    isList,
    isTrue,
    iterate,
    lessThan,
    Markup,
    TemplateObject,
    Tuple,
    typeName,
    Undefined,
    type Value,
} from "./values.js";

/** Return `str(value)`. */
export function str(value: Value): string {
    if (typeof value === "string") {
        return value;
    }
    if (value instanceof Markup) {
        return value.text;
    }
    return value instanceof Undefined ? "" : repr(value);
}

/** Return `repr(value)`. */
export function repr(value: Value): string {
    switch (typeof value) {
        case "string":
            return textRepr(value);
        case "boolean":
            return value ? "True" : "False";
        case "bigint":
            return integerText(value);
        case "number":
            return floatText(value);
        default:
    }
    if (value === null) {
        return "None";
    }
    if (isList(value)) {
        return `[${value.map(repr).join(", ")}]`;
    }
    if (value instanceof Tuple) {
        return `(${value.items.map(repr).join(", ")}${value.items.length === 1 ? "," : ""})`;
    }
    if (value instanceof Dict) {
        return `{${value
            .items()
            .map(([key, each]) => `${repr(key)}: ${repr(each)}`)
            .join(", ")}}`;
    }
    if (value instanceof DictView) {
        return `dict_${value.kind}(${repr([...iterate(value)])})`;
    }
    if (value instanceof Undefined) {
        return "Undefined";
    }
    return value instanceof TemplateObject ? value.text() : unsupported("the repr of an escaped text");
}

const ESCAPES: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" };
// Categories that Python does not print: others, and separators except the space. Unassigned characters depend on the
// version of Unicode.
const NOT_PRINTABLE = /[\\\p{C}\p{Z}]/gu;

function textRepr(text: string): string {
    const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
    const escaped = text.replace(NOT_PRINTABLE, (character) => {
        const code = character.codePointAt(0) ?? 0;
        if (character === " ") {
            return character;
        }
        const hex = code.toString(16);
        const long = code > 0xffff ? `\\U${hex.padStart(8, "0")}` : `\\u${hex.padStart(4, "0")}`;
        return ESCAPES[character] ?? (code > 0xff ? long : `\\x${hex.padStart(2, "0")}`);
    });
    return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

export interface JsonOptions {
    readonly ascii: boolean;
    /** undefined: one line. */
    readonly indent: string | undefined;
    readonly itemSeparator: string;
    readonly keySeparator: string;
    readonly sortKeys: boolean;
}

/** Return the options of `tojson` from its arguments. */
export function jsonOptions(ascii: Value, indent: Value, separators: Value, sortKeys: Value): JsonOptions {
    let indentText: string | undefined;
    if (isInteger(indent)) {
        checkWidth("tojson", BigInt(indent));
        indentText = " ".repeat(Math.max(0, Number(indent)));
    } else if (indent !== null) {
        indentText = typeof indent === "string" ? indent : fail(`tojson: the indent is a ${typeName(indent)}`);
    }
    const given = separators === null ? [indentText === undefined ? ", " : ",", ": "] : [...iterate(separators)];
    const [itemSeparator, keySeparator] = given;
    if (given.length !== 2 || typeof itemSeparator !== "string" || typeof keySeparator !== "string") {
        fail("tojson: the separators are not two texts");
    }
    return { ascii: isTrue(ascii), indent: indentText, itemSeparator, keySeparator, sortKeys: isTrue(sortKeys) };
}

/** Return a value as JSON, as Python's `json.dumps` writes it. `count` gets the length of each part. */
export function json(value: Value, options: JsonOptions, count: (size: number) => void, level = 0): string {
    count(0);
    const list = isList(value) ? value : value instanceof Tuple ? value.items : undefined;
    if (list !== undefined) {
        const items = list.map((each) => json(each, options, count, level + 1));
        return container("[", items, "]", options, count, level);
    }
    if (value instanceof Dict) {
        let items = value.items();
        if (options.sortKeys) {
            items = items.sort(([left], [right]) => (lessThan(left, right) ? -1 : lessThan(right, left) ? 1 : 0));
        }
        const texts = items.map(([key, each]) => {
            const text = json(each, options, count, level + 1);
            return jsonText(jsonKey(key), options.ascii) + options.keySeparator + text;
        });
        return container("{", texts, "}", options, count, level);
    }
    if (typeof value === "string" || value instanceof Markup) {
        return jsonText(str(value), options.ascii);
    }
    return jsonScalar(value) ?? fail(`Object of type ${typeName(value)} is not JSON serializable`);
}

function container(
    open: string,
    items: readonly string[],
    close: string,
    options: JsonOptions,
    count: (size: number) => void,
    level: number,
): string {
    if (items.length === 0) {
        return open + close;
    }
    if (options.indent === undefined) {
        return open + items.join(options.itemSeparator) + close;
    }
    count((items.length + 1) * (level + 1) * options.indent.length);
    const newline = `\n${options.indent.repeat(level + 1)}`;
    return `${open}${newline}${items.join(options.itemSeparator + newline)}\n${options.indent.repeat(level)}${close}`;
}

function jsonScalar(value: Value): string | undefined {
    switch (typeof value) {
        case "boolean":
            return value ? "true" : "false";
        case "bigint":
            return integerText(value);
        case "number":
            return Number.isFinite(value)
                ? floatText(value)
                : Number.isNaN(value)
                  ? "NaN"
                  : value < 0
                    ? "-Infinity"
                    : "Infinity";
        default:
            return value === null ? "null" : undefined;
    }
}

function jsonKey(key: Value): string {
    if (typeof key === "string" || key instanceof Markup) {
        return str(key);
    }
    return jsonScalar(key) ?? fail(`keys must be str, int, float, bool or None, not ${typeName(key)}`);
}

const JSON_ESCAPES: Readonly<Record<string, string>> = {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\f": "\\f",
    "\b": "\\b",
};

function jsonText(text: string, ascii: boolean): string {
    const special = ascii ? /["\\\0-\x1f\x7f-\uffff]/g : /["\\\0-\x1f]/g;
    const escaped = text.replace(special, (unit) =>
        unit === "\x7f" ? unit : (JSON_ESCAPES[unit] ?? `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`),
    );
    return `"${escaped}"`;
}
