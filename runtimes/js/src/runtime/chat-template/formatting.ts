/** The method `format` of texts, and the operator `%`. */

import { characters, isAscii, length } from "./characters.js";
import type { Engine } from "./engine.js";
import { fail, unsupported } from "./failures.js";
import { MAX_WIDTH } from "./limits.js";
import { exponentText, fixedText, floatText, generalText, integerText, nonFinite, toFloat } from "./numbers.js";
import { repr, str } from "./text.js";
import {
    Dict,
    isInteger,
    isList,
    isNumber,
    Markup,
    numeric,
    Range,
    Tuple,
    typeName,
    Undefined,
    type Arguments,
    type Value,
} from "./values.js";

const WIDE = `it formats a value with a width above ${MAX_WIDTH}, or with a width that is an argument`;

interface Spec {
    fill: string;
    align: string;
    sign: string;
    alternate: boolean;
    width: number;
    grouping: string;
    precision: number | undefined;
    type: string;
}

/** Return the digits of an int in the base of a type of format. */
function integerDigits(value: bigint, type: string, alternate: boolean): string {
    const magnitude = value < 0n ? -value : value;
    switch (type) {
        case "x":
        case "X": {
            const digits = (alternate ? "0x" : "") + magnitude.toString(16);
            return type === "X" ? digits.toUpperCase() : digits;
        }
        case "o":
            return (alternate ? "0o" : "") + magnitude.toString(8);
        case "b":
            return (alternate ? "0b" : "") + magnitude.toString(2);
        default:
            return integerText(magnitude);
    }
}

/** Return a float without its sign. */
function floatDigits(value: number, type: string, precision: number, alternate: boolean): string {
    if (alternate) {
        unsupported("the flag # of a format of a float");
    }
    if (!Number.isFinite(value)) {
        const text = nonFinite(Math.abs(value));
        return type === type.toUpperCase() && type !== "%" ? text.toUpperCase() : text;
    }
    switch (type) {
        case "f":
        case "F":
            return fixedText(value, precision);
        case "e":
            return exponentText(value, precision);
        case "E":
            return exponentText(value, precision).toUpperCase();
        case "g":
            return generalText(value, precision);
        default:
            return generalText(value, precision).toUpperCase();
    }
}

function isNegative(value: bigint | number): boolean {
    return value < 0 || Object.is(value, -0);
}

/** Return digits with a separator between groups, and zeros before them up to a width. */
function grouped(digits: string, separator: string, size: number, width: number): string {
    const match = /^[\da-fA-F]*/.exec(digits)![0];
    const rest = digits.slice(match.length);
    let whole = match;
    const group = (text: string): string =>
        separator === "" ? text : text.replace(new RegExp(`\\B(?=(?:.{${size}})+$)`, "g"), separator);
    while (group(whole).length + rest.length < width) {
        whole = `0${whole}`;
    }
    return group(whole) + rest;
}

function padded(text: string, spec: Spec, align: string): string {
    const missing = spec.width - length(text);
    if (missing <= 0) {
        return text;
    }
    const before = align === "<" ? 0 : align === ">" ? missing : Math.floor(missing / 2);
    return spec.fill.repeat(before) + text + spec.fill.repeat(missing - before);
}

const SPEC = /^(?:([^])?([<>=^]))?([-+ ])?(#)?(0)?(\d+)?([,_])?(?:\.(\d+))?([a-zA-Z%])?$/u;

function parseSpec(text: string, isText: boolean): Spec {
    if (/\d{5}|\{/.test(text)) {
        fail(WIDE);
    }
    const match = SPEC.exec(text) ?? fail(`Invalid format specifier '${text}'`);
    const zero = match[5] !== undefined;
    return {
        fill: match[1] ?? (zero ? "0" : " "),
        align: match[2] ?? (zero && !isText ? "=" : ""),
        sign: match[3] ?? "",
        alternate: match[4] !== undefined,
        width: Number(match[6] ?? "0"),
        grouping: match[7] ?? "",
        precision: match[8] === undefined ? undefined : Number(match[8]),
        type: match[9] ?? "",
    };
}

/** Return `format(value, spec)`. */
function formatValue(value: Value, specText: string): string {
    if (specText === "") {
        return str(value);
    }
    if (value instanceof Markup) {
        unsupported("the format of an escaped text");
    }
    const spec = parseSpec(specText, typeof value === "string");
    if (typeof value === "string") {
        if (!["", "s"].includes(spec.type) || spec.sign !== "" || spec.alternate || spec.grouping !== "") {
            fail(`Invalid format specifier '${specText}' for str`);
        }
        if (spec.align === "=") {
            fail("'=' alignment not allowed in string format specifier");
        }
        const cut = spec.precision === undefined ? value : characters(value).slice(0, spec.precision).join("");
        return padded(cut, spec, spec.align === "" ? "<" : spec.align);
    }
    if (!isNumber(value)) {
        fail(`unsupported format string passed to ${typeName(value)}.__format__`);
    }
    return formatNumber(numeric(value), spec, specText);
}

function formatNumber(value: bigint | number, spec: Spec, specText: string): string {
    const sign = isNegative(value) ? "-" : spec.sign === "-" ? "" : spec.sign;
    const digits = numberDigits(value, spec, specText);
    const groupSize = ["x", "X", "o", "b"].includes(spec.type) ? 4 : 3;
    if (groupSize === 4 && (spec.alternate || spec.grouping !== "")) {
        unsupported(`the format '${specText}'`);
    }
    const inside = spec.align === "=" && spec.fill === "0" ? spec.width - sign.length : 0;
    const finite = /^\d/.test(digits) || groupSize === 4;
    const text = finite ? grouped(digits, spec.grouping, groupSize, inside) : digits;
    if (spec.align === "=") {
        return sign + padded(text, { ...spec, width: spec.width - sign.length }, ">");
    }
    return padded(sign + text, spec, spec.align === "" ? ">" : spec.align);
}

function numberDigits(value: bigint | number, spec: Spec, specText: string): string {
    const { type, precision } = spec;
    if (typeof value === "bigint" && ["", "d", "n", "x", "X", "o", "b", "c"].includes(type)) {
        if (type === "c" || type === "n") {
            unsupported(`the format '${specText}'`);
        }
        if (precision !== undefined) {
            fail("Precision not allowed in integer format specifier");
        }
        return integerDigits(value, type, spec.alternate);
    }
    const float = toFloat(value);
    if (type === "%") {
        return `${floatDigits(float * 100, "f", precision ?? 6, spec.alternate)}%`;
    }
    if (type === "") {
        // As "g", but with one digit after the point at least; JavaScript has no such form.
        return precision === undefined ? floatText(float).replace("-", "") : unsupported(`the format '${specText}'`);
    }
    if (!"eEfFgG".includes(type)) {
        fail(`Unknown format code '${type}' for object of type '${typeName(value)}'`);
    }
    return floatDigits(float, type, precision ?? 6, spec.alternate);
}

/** Return the result of the method `format` of a text. */
export function formatText(engine: Engine, format: string, args: Arguments): string {
    let automatic = 0;
    const result: string[] = [];
    let at = 0;
    while (at < format.length) {
        const brace = /[{}]/g;
        brace.lastIndex = at;
        const found = brace.exec(format);
        result.push(format.slice(at, found?.index));
        if (found === null) {
            break;
        }
        at = found.index + 1;
        if (format[at] === found[0]) {
            result.push(found[0]);
            at += 1;
            continue;
        }
        if (found[0] === "}") {
            fail("Single '}' encountered in format string");
        }
        const end = fieldEnd(format, at);
        const { name, conversion, spec } = parseField(format.slice(at, end));
        at = end + 1;
        let used = name;
        if (/^(?:$|[.[])/.test(name)) {
            used = automatic < 0 ? fail("cannot switch from manual to automatic numbering") : `${automatic}${name}`;
            automatic += 1;
        } else if (/^\d/.test(name)) {
            automatic = automatic > 0 ? fail("cannot switch from automatic to manual numbering") : -1;
        }
        const value = converted(field(engine, used, args), conversion);
        result.push(formatValue(value, spec));
        engine.work.add(result.at(-1)!.length);
    }
    return result.join("");
}

function fieldEnd(format: string, start: number): number {
    let depth = 1;
    for (let at = start; at < format.length; at += 1) {
        depth += format[at] === "{" ? 1 : format[at] === "}" ? -1 : 0;
        if (depth === 0) {
            return at;
        }
    }
    return fail("expected '}' before end of string");
}

function parseField(text: string): { name: string; conversion: string; spec: string } {
    const match = /^((?:\[[^\]]*\]|[^!:[{}])*)(?:!([^:]*))?(?::([^]*))?$/.exec(text);
    return match === null
        ? fail(`invalid field {${text}} of a format string`)
        : { name: match[1]!, conversion: match[2] ?? "", spec: match[3] ?? "" };
}

function converted(value: Value, conversion: string): Value {
    switch (conversion) {
        case "":
            return value;
        case "s":
            return str(value);
        case "r":
            return repr(value);
        case "a": {
            const text = repr(value);
            return isAscii(text) ? text : unsupported("the conversion !a of other characters than ASCII");
        }
        default:
            return fail(`Unknown conversion specifier ${conversion}`);
    }
}

/** Return the value that a field such as `user.names[0]` names. */
function field(engine: Engine, name: string, args: Arguments): Value {
    const first = /^[^.[]*/.exec(name)![0];
    const positional = /^\d+$/.test(first);
    let value = positional ? args.positional[Number(first)] : args.keywords.get(first);
    if (value === undefined) {
        return fail(`no argument ${first} for the format`);
    }
    let rest = name.slice(first.length);
    while (rest !== "") {
        const part = /^(?:\.([^.[]+)|\[([^\]]+)\])/.exec(rest) ?? fail(`invalid field {${name}} of a format string`);
        const item = part[2];
        value =
            item === undefined
                ? engine.attribute(value, part[1]!)
                : engine.item(value, /^\d+$/.test(item) ? BigInt(item) : item);
        rest = rest.slice(part[0].length);
    }
    return value;
}

// The same test as the driver in Python makes, so that both refuse the same texts.
const WIDE_PERCENT = /[%)][-+ #0-9.]*(?:[0-9]{5}|\*)/;
const PERCENT = /%(?:\(((?:[^()]|\([^()]*\))*)\))?([-+ #0]*)(\d*)(?:\.(\d*))?[hlL]?([^]?)/gu;

/** Return `format % value`. */
export function percent(engine: Engine, format: string, value: Value): string {
    if (WIDE_PERCENT.test(format)) {
        fail(WIDE);
    }
    const items = value instanceof Tuple ? value.items : [value];
    const isMapping = value instanceof Dict || isList(value) || value instanceof Undefined || value instanceof Range;
    let used = 0;
    const result = format.replace(PERCENT, (...match: (string | undefined)[]): string => {
        const [, key, flags, width, precision, type] = match;
        if (type === "%") {
            return flags === "" && width === "" && precision === undefined && key === undefined
                ? "%"
                : unsupported(`the format ${match[0]!}`);
        }
        let item: Value;
        if (key !== undefined) {
            item = namedItem(value, key);
        } else {
            item = used < items.length ? items[used]! : fail("not enough arguments for format string");
            used += 1;
        }
        const text = percentItem(item, type!, flags!, Number(width), precision);
        engine.work.add(text.length);
        return text;
    });
    if (used < items.length && !isMapping) {
        fail("not all arguments converted during string formatting");
    }
    return result;
}

function namedItem(value: Value, key: string): Value {
    const item = value instanceof Dict ? value.get(key) : fail("format requires a mapping");
    return item === undefined ? fail(`no key '${key}'`) : item;
}

function percentItem(value: Value, type: string, flags: string, width: number, precisionText?: string): string {
    const precision = precisionText === undefined ? undefined : Number(precisionText);
    const spec = { fill: " ", width } as Spec;
    const align = flags.includes("-") ? "<" : ">";
    if (type === "s" || type === "r" || type === "c") {
        if (type === "c") {
            unsupported("the format %c");
        }
        const text = type === "s" ? str(value) : repr(value);
        return padded(precision === undefined ? text : characters(text).slice(0, precision).join(""), spec, align);
    }
    const number = percentNumber(value, type);
    const sign = isNegative(number) ? "-" : flags.includes("+") ? "+" : flags.includes(" ") ? " " : "";
    let digits: string;
    if (typeof number === "bigint") {
        digits = integerDigits(number, type, flags.includes("#"));
        if (precision !== undefined) {
            digits = flags.includes("#") ? unsupported("a precision with #") : digits.padStart(precision, "0");
        }
    } else {
        digits = floatDigits(number, type, precision ?? 6, flags.includes("#"));
    }
    if (flags.includes("0") && align === ">") {
        const prefix = /^0[xXo]/.exec(digits)?.[0] ?? "";
        digits = prefix + digits.slice(prefix.length).padStart(width - sign.length - prefix.length, "0");
    }
    return padded(sign + digits, spec, align);
}

function percentNumber(value: Value, type: string): bigint | number {
    if ("diuxXo".includes(type) && type !== "") {
        if (isInteger(value)) {
            return numeric(value);
        }
        if (typeof value === "number" && "diu".includes(type)) {
            return Number.isFinite(value) ? BigInt(Math.trunc(value)) : fail("cannot convert float to integer");
        }
        return fail(`%${type} format: a number is required, not ${typeName(value)}`);
    }
    if ("eEfFgG".includes(type) && type !== "") {
        return isNumber(value) ? toFloat(numeric(value)) : fail(`must be real number, not ${typeName(value)}`);
    }
    return fail(type === "" ? "incomplete format" : `unsupported format character '${type}'`);
}
