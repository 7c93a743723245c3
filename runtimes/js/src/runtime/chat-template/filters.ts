/** Jinja's filters. */

import { bind, bindPositional, index, text } from "./calls.js";
import { characters, length } from "./characters.js";
import type { Engine, Operation } from "./engine.js";
import { fail, unsupported } from "./failures.js";
import { percent } from "./formatting.js";
import { checkWidth } from "./limits.js";
import { parseFloatText, parseInteger, roundFloat, roundInteger, toFloat } from "./numbers.js";
import { SEQUENCE_FILTERS } from "./sequence-filters.js";
import { json, jsonOptions, str } from "./text.js";
import { capitalized, centered, replaced, splitLines, stripped } from "./text-methods.js";
import {
    Dict,
    isInteger,
    isNumber,
    isTrue,
    Markup,
    numeric,
    orElse,
    sizeOf,
    Tuple,
    typeName,
    Undefined,
    type Value,
} from "./values.js";

/** Return a value as a text, as Jinja's text filters take it. */
function soft(value: Value): string {
    return value instanceof Markup ? unsupported("a filter of an escaped text") : str(value);
}

function onText(run: (value: string) => Value): Operation {
    return (_engine, value, args) => {
        bindPositional("filter", args, 0, 0);
        return run(soft(value));
    };
}

const ESCAPES: Readonly<Record<string, string>> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&#34;",
    "'": "&#39;",
};

function escaped(value: Value): Markup {
    return new Markup(str(value).replace(/[&<>"']/g, (character) => ESCAPES[character]!));
}

function int(value: Value, missing: Value, base: number): Value {
    if (base !== 0 && (base < 2 || base > 36)) {
        unsupported(`the base ${base}`);
    }
    if (typeof value === "string") {
        const parsed = parseInteger(value, base);
        const float = parsed === undefined ? parseFloatText(value) : undefined;
        return parsed ?? (float !== undefined && Number.isFinite(float) ? BigInt(Math.trunc(float)) : missing);
    }
    if (value instanceof Undefined) {
        value.fail();
    }
    if (value instanceof Markup) {
        return unsupported("the filter int of an escaped text");
    }
    if (typeof value === "number") {
        if (value === Infinity || value === -Infinity) {
            fail("cannot convert float infinity to integer");
        }
        return Number.isNaN(value) ? missing : BigInt(Math.trunc(value));
    }
    return isInteger(value) ? BigInt(value) : missing;
}

function float(value: Value, missing: Value): Value {
    if (value instanceof Undefined) {
        value.fail();
    }
    if (isNumber(value)) {
        return toFloat(numeric(value));
    }
    return (typeof value === "string" ? parseFloatText(value) : undefined) ?? missing;
}

function round(value: Value, precision: Value, method: Value): Value {
    const digits = precision === null && method === "common" ? null : index("round", precision);
    checkWidth("round", digits ?? 0);
    if (method !== "common" && method !== "ceil" && method !== "floor") {
        fail("method must be common, ceil or floor");
    }
    if (!isNumber(value)) {
        return fail(`type ${typeName(value)} doesn't define __round__ method`);
    }
    const number = numeric(value);
    if (method === "common") {
        if (typeof number === "bigint") {
            return roundInteger(number, digits ?? 0);
        }
        return digits === null ? unsupported("round with the precision none") : roundFloat(number, digits);
    }
    if (digits === null || digits < 0 || digits > 22 || !Number.isFinite(Number(number))) {
        return unsupported("round with this precision");
    }
    // 10 ** 22 is the largest power of ten that is a float.
    const power = 10 ** digits;
    const product = Number(number) * power;
    return (method === "ceil" ? Math.ceil(product) : Math.floor(product)) / power + 0;
}

function indent(engine: Engine, value: Value, args: Value[]): string {
    const [width, first, blank] = args;
    if (typeof value !== "string") {
        return fail(`indent: expected str, found ${typeName(value)}`);
    }
    let by: string;
    if (typeof width === "string") {
        by = width;
    } else {
        const size = index("indent", width!);
        checkWidth("indent", size);
        by = " ".repeat(Math.max(0, size));
    }
    const lines = splitLines(`${value}\n`);
    engine.work.add(lines.length * length(by));
    const all = isTrue(blank!);
    const indented = lines.map((line, at) => (at > 0 && (all || line !== "") ? by + line : line)).join("\n");
    return isTrue(first!) ? by + indented : indented;
}

function truncate(value: Value, args: (Value | undefined)[]): Value {
    const size = index("truncate", orElse(args[0], 255n));
    const end = text("truncate", orElse(args[2], "..."));
    const leeway = index("truncate", args[3] ?? 5n);
    const keep = size - length(end);
    if (keep < 0 || leeway < 0) {
        fail(`truncate: expected a length >= ${length(end)} and a leeway >= 0`);
    }
    if ((sizeOf(value) ?? fail(`object of type '${typeName(value)}' has no len()`)) <= size + leeway) {
        return value;
    }
    const self = text("truncate", value);
    const cut = characters(self).slice(0, keep).join("");
    const space = cut.lastIndexOf(" ");
    return (isTrue(args[1] ?? false) || space < 0 ? cut : cut.slice(0, space)) + end;
}

function title(value: string): string {
    return value
        .split(/([-\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000({[<]+)/)
        .map((part) => {
            const [first, ...others] = characters(part);
            return (first ?? "").toUpperCase() + others.join("").toLowerCase();
        })
        .join("");
}

function tojson(engine: Engine, value: Value, args: Value[]): string {
    const count = (size: number): void => {
        engine.work.add(size);
    };
    return json(value, jsonOptions(args[0]!, args[1]!, args[2]!, args[3]!), count);
}

/** Return a filter with parameters that all have a default. */
function withDefaults(
    name: string,
    parameters: readonly (readonly [string, Value])[],
    run: (engine: Engine, value: Value, args: Value[]) => Value,
): [string, Operation] {
    const names = parameters.map(([each]) => each);
    return [
        name,
        (engine, value, args) => {
            const given = bind(name, args, names, 0);
            return run(
                engine,
                value,
                given.map((each, at) => orElse(each, parameters[at]![1])),
            );
        },
    ];
}

function refused(name: string): [string, Operation] {
    return [name, () => unsupported(`the filter ${name}`)];
}

function replace(engine: Engine, value: Value, args: Parameters<Operation>[2]): Value {
    const [old, replacement, count] = bind("replace", args, ["old", "new", "count"], 2);
    const places = count === undefined || count === null ? -1 : index("replace", count);
    return replaced(engine, str(value), str(old!), str(replacement!), places);
}

const lengthOf: Operation = (_engine, value, args) => {
    bindPositional("length", args, 0, 0);
    return BigInt(sizeOf(value) ?? fail(`object of type '${typeName(value)}' has no len()`));
};

const abs: Operation = (_engine, value, args) => {
    bindPositional("abs", args, 0, 0);
    if (value instanceof Undefined) {
        value.fail();
    }
    const number = isNumber(value) ? numeric(value) : fail(`bad operand type for abs(): '${typeName(value)}'`);
    return typeof number === "number" ? Math.abs(number) : number < 0n ? -number : number;
};

const orDefault = withDefaults(
    "default",
    [
        ["default_value", ""],
        ["boolean", false],
    ],
    (_engine, value, [other, boolean]) =>
        value instanceof Undefined || (isTrue(boolean!) && !isTrue(value)) ? other! : value,
)[1];

/** The filters by name. Those that this driver does not have fail when they are used. */
export const FILTERS: ReadonlyMap<string, Operation> = new Map<string, Operation>([
    ...SEQUENCE_FILTERS,
    ["upper", onText((value) => value.toUpperCase())],
    ["lower", onText((value) => value.toLowerCase())],
    ["capitalize", onText(capitalized)],
    ["title", onText(title)],
    ["length", lengthOf],
    ["count", lengthOf],
    ["abs", abs],
    ["default", orDefault],
    ["d", orDefault],
    ["replace", replace],
    ["escape", (_engine, value) => (value instanceof Markup ? value : escaped(value))],
    ["e", (_engine, value) => (value instanceof Markup ? value : escaped(value))],
    ["forceescape", (_engine, value) => escaped(value)],
    ["safe", (_engine, value) => new Markup(str(value))],
    ["string", (_engine, value) => (value instanceof Markup ? value : str(value))],
    withDefaults("trim", [["chars", null]], (_engine, value, [chars]) => stripped(soft(value), chars!, true, true)),
    withDefaults("center", [["width", 80n]], (_engine, value, [width]) => {
        const size = index("center", width!);
        checkWidth("center", size);
        return centered(soft(value), size);
    }),
    withDefaults(
        "int",
        [
            ["default", 0n],
            ["base", 10n],
        ],
        (_engine, value, [missing, base]) => int(value, missing!, index("int", base!)),
    ),
    withDefaults("float", [["default", 0]], (_engine, value, [missing]) => float(value, missing!)),
    withDefaults(
        "round",
        [
            ["precision", 0n],
            ["method", "common"],
        ],
        (_engine, value, [precision, method]) => round(value, precision!, method!),
    ),
    withDefaults(
        "indent",
        [
            ["width", 4n],
            ["first", false],
            ["blank", false],
        ],
        indent,
    ),
    [
        "truncate",
        (_engine, value, args) => truncate(value, bind("truncate", args, ["length", "killwords", "end", "leeway"], 0)),
    ],
    withDefaults(
        "tojson",
        [
            ["ensure_ascii", false],
            ["indent", null],
            ["separators", null],
            ["sort_keys", false],
        ],
        tojson,
    ),
    [
        "format",
        (engine, value, { positional, keywords }) => {
            if (positional.length > 0 && keywords.size > 0) {
                fail("can't handle positional and keyword arguments at the same time");
            }
            return percent(engine, soft(value), keywords.size > 0 ? new Dict(keywords) : new Tuple(positional));
        },
    ],
    ...[
        "attr",
        "batch",
        "filesizeformat",
        "pprint",
        "random",
        "slice",
        "striptags",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap",
        "xmlattr",
    ].map(refused),
]);
