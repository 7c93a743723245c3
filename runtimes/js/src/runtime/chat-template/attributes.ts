/** Attributes, items and slices. Names of attributes are only looked up in the tables of this driver. */

import { bindPositional, index } from "./calls.js";
import { characters } from "./characters.js";
import type { Engine, Operation } from "./engine.js";
import { fail, unsupported } from "./failures.js";
import { repr, str } from "./text.js";
import { TEXT_METHODS } from "./text-methods.js";
import {
    Callable,
    Dict,
    DictView,
    equal,
    isInteger,
    isList,
    Markup,
    orElse,
    Range,
    TemplateObject,
    Tuple,
    typeName,
    Undefined,
    type Value,
} from "./values.js";

function indexOf(items: readonly Value[]): Operation {
    return (_engine, _value, args) => {
        const [wanted, start, stop] = bindPositional("index", args, 1, 3);
        const bound = (value: Value | undefined, missing: number): number => {
            const number = value === undefined ? missing : index("index", value);
            return number < 0 ? Math.max(0, number + items.length) : number;
        };
        const end = bound(stop, items.length);
        const at = items.findIndex((each, place) => place >= bound(start, 0) && place < end && equal(each, wanted!));
        return at < 0 ? fail(`${repr(wanted!)} is not in list`) : BigInt(at);
    };
}

function count(items: readonly Value[]): Operation {
    return (_engine, _value, args) => {
        const [wanted] = bindPositional("count", args, 1, 1);
        return BigInt(items.filter((each) => equal(each, wanted!)).length);
    };
}

function listMethod(items: readonly Value[], name: string): Operation | undefined {
    return name === "index" ? indexOf(items) : name === "count" ? count(items) : undefined;
}

const DICT_METHODS: ReadonlyMap<string, (dict: Dict) => Operation> = new Map<string, (dict: Dict) => Operation>([
    ...(["keys", "values", "items"] as const).map((kind): [string, (dict: Dict) => Operation] => [
        kind,
        (dict) => (_engine, _value, args) => {
            bindPositional(kind, args, 0, 0);
            return new DictView(kind, dict);
        },
    ]),
    [
        "get",
        (dict) => (_engine, _value, args) => {
            const [key, missing] = bindPositional("get", args, 1, 2);
            return orElse(dict.get(key!), orElse(missing, null));
        },
    ],
    [
        "copy",
        (dict) => (_engine, _value, args) => {
            bindPositional("copy", args, 0, 0);
            return new Dict(dict.items());
        },
    ],
]);

/** Methods that change a value, which the sandbox refuses. */
const CHANGING: Readonly<Record<string, readonly string[]>> = {
    list: ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"],
    dict: ["clear", "pop", "popitem", "setdefault", "update"],
};

/** Attributes of values in Python that this driver does not have. */
const MISSING: Readonly<Record<string, readonly string[]>> = {
    str: [
        "casefold",
        "encode",
        "expandtabs",
        "format_map",
        "isidentifier",
        "isprintable",
        "istitle",
        "maketrans",
        "swapcase",
        "translate",
    ],
    dict: ["fromkeys"],
    int: ["as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes", "imag"],
    float: ["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"],
    range: ["count", "index", "start", "step", "stop"],
    generator: ["close", "gi_code", "gi_frame", "gi_running", "gi_yieldfrom", "send", "throw"],
    dict_keys: ["isdisjoint", "mapping"],
    dict_items: ["isdisjoint", "mapping"],
    dict_values: ["mapping"],
};
const MISSING_INT = new Set([...MISSING.int!, "is_integer", "numerator", "real", "to_bytes"]);

/** Return the method of a value; undefined if the value has no attribute of this name. */
function method(engine: Engine, value: Value, name: string): Value | undefined {
    let found: Operation | undefined;
    if (typeof value === "string") {
        const run = TEXT_METHODS.get(name);
        found = run === undefined ? undefined : (_engine, _value, args) => run(engine, value, args);
    } else if (isList(value)) {
        found =
            name === "copy"
                ? (_engine, _value, args) => (bindPositional(name, args, 0, 0), [...value])
                : listMethod(value, name);
    } else if (value instanceof Tuple) {
        const at = value.names.indexOf(name);
        if (at >= 0) {
            return value.items[at];
        }
        found = listMethod(value.items, name);
    } else if (value instanceof Dict) {
        found = DICT_METHODS.get(name)?.(value);
    } else if (value instanceof TemplateObject) {
        const attribute = value.attribute(name);
        if (attribute !== undefined) {
            return attribute;
        }
    }
    if (found !== undefined) {
        const run = found;
        return new Callable(name, (args) => run(engine, value, args));
    }
    const type = typeName(value);
    const isMissing = isInteger(value) ? MISSING_INT.has(name) : (MISSING[type] ?? []).includes(name);
    return isMissing ? unsupported(`the attribute ${name} of ${type}`) : undefined;
}

function unsafe(value: Value, name: string): Undefined {
    return new Undefined(`access to attribute '${name}' of '${typeName(value)}' object is unsafe.`);
}

/** Return an attribute as the sandbox allows it; undefined if the value has none of this name. */
function safeAttribute(engine: Engine, value: Value, name: string): Value | undefined {
    if (value instanceof Undefined) {
        return name.startsWith("__") ? unsupported(`the attribute ${name}`) : value.fail();
    }
    if (value instanceof Markup) {
        unsupported(`the attribute ${name} of an escaped text`);
    }
    if (/^__.*__$/.test(name)) {
        return value instanceof Dict && value.has(name) ? unsupported(`the attribute ${name}`) : unsafe(value, name);
    }
    if ((CHANGING[typeName(value)] ?? []).includes(name)) {
        return unsafe(value, name);
    }
    if (name.startsWith("_") && value instanceof TemplateObject) {
        return unsafe(value, name);
    }
    return method(engine, value, name);
}

function missing(value: Value, name: Value): Undefined {
    const type = typeName(value);
    return new Undefined(
        typeof name === "string"
            ? `'${type} object' has no attribute '${name}'`
            : `${type} object has no element ${repr(name)}`,
    );
}

/** Return an item; undefined if there is none, or the value has no items of this kind. */
function itemOf(value: Value, key: Value): Value | undefined {
    if (value instanceof Dict) {
        return isList(key) || key instanceof Dict ? undefined : value.get(key);
    }
    if (value instanceof Undefined) {
        value.fail();
    }
    if (value instanceof Markup) {
        unsupported("an item of an escaped text");
    }
    if (!isInteger(key)) {
        return undefined;
    }
    const items = sequence(value);
    const at = index("index", key);
    return items?.[at < 0 ? at + items.length : at];
}

/** Return the items of a value that has indices. */
function sequence(value: Value): readonly Value[] | undefined {
    if (typeof value === "string") {
        return characters(value);
    }
    if (value instanceof Range) {
        return [...value.iterate()];
    }
    return isList(value) ? value : value instanceof Tuple ? value.items : undefined;
}

/** Return `value.name`: an attribute, or an item of this name, or an undefined value. */
export function attribute(engine: Engine, value: Value, name: string): Value {
    const found = safeAttribute(engine, value, name);
    return found === undefined ? orElse(itemOf(value, name), missing(value, name)) : found;
}

/** Return `value[key]`: an item, or an attribute of this name, or an undefined value. */
export function item(engine: Engine, value: Value, key: Value): Value {
    const found = itemOf(value, key);
    if (found !== undefined) {
        return found;
    }
    if (typeof key !== "string") {
        return missing(value, key);
    }
    return /^__.*__$/.test(key) ? unsafe(value, key) : orElse(safeAttribute(engine, value, key), missing(value, key));
}

/** Return `value[start:stop:step]`. */
export function slice(value: Value, start: Value, stop: Value, step: Value): Value {
    if (value instanceof Undefined) {
        value.fail();
    }
    if (value instanceof Markup || value instanceof Range) {
        return unsupported(`a slice of ${typeName(value)}`);
    }
    const items = sequence(value);
    // Jinja renders such a slice of a constant as nothing, and such a slice of a variable not at all.
    if (items === undefined) {
        return unsupported(`a slice of ${typeName(value)}`);
    }
    const valid = [start, stop, step].every((each) => each === null || isInteger(each));
    if (!valid) {
        return unsupported("a slice whose indices are not integers");
    }
    const by = step === null ? 1 : index("slice", step);
    if (by === 0) {
        unsupported("a slice with the step 0");
    }
    const chosen = sliceItems(items, start, stop, by);
    if (typeof value === "string") {
        return chosen.map(str).join("");
    }
    return value instanceof Tuple ? new Tuple(chosen) : chosen;
}

function sliceItems(items: readonly Value[], start: Value, stop: Value, by: number): Value[] {
    const size = items.length;
    const low = by > 0 ? 0 : -1;
    const high = by > 0 ? size : size - 1;
    const bound = (value: Value, none: number): number => {
        if (value === null) {
            return none;
        }
        const number = index("slice", value);
        return Math.min(Math.max(number < 0 ? number + size : number, low), high);
    };
    const from = bound(start, by > 0 ? low : high);
    const to = bound(stop, by > 0 ? high : low);
    const chosen: Value[] = [];
    for (let at = from; by > 0 ? at < to : at > to; at += by) {
        chosen.push(items[at]!);
    }
    return chosen;
}
