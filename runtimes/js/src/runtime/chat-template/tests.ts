/** Jinja's tests, the names after `is`. */

import { bindPositional } from "./calls.js";
import type { Engine } from "./engine.js";
import { unsupported } from "./failures.js";
import { FILTERS } from "./filters.js";
import { binary, compare } from "./operators.js";
import { str } from "./text.js";
import { hasCase } from "./text-methods.js";
import {
    Dict,
    DictView,
    equal,
    hashed,
    isList,
    isNumber,
    Lazy,
    Markup,
    Range,
    TemplateObject,
    Tuple,
    tryIterate,
    typeName,
    Undefined,
    type Arguments,
    type Value,
} from "./values.js";

type Test = (engine: Engine, value: Value, args: Arguments) => boolean;

function simple(name: string, test: (value: Value) => boolean): [string, Test] {
    return [
        name,
        (_engine, value, args) => {
            bindPositional(name, args, 0, 0);
            return test(value);
        },
    ];
}

function comparison(operator: string, ...names: string[]): [string, Test][] {
    return names.map((name) => [
        name,
        (_engine, value, args) => compare(operator, value, bindPositional(name, args, 1, 1)[0]!),
    ]);
}

function remainderIs(engine: Engine, value: Value, divisor: Value, rest: bigint): boolean {
    return equal(binary(engine, "%", value, divisor), rest);
}

function isSame(value: Value, other: Value): boolean {
    const scalar = (each: Value): boolean => ["string", "bigint", "number"].includes(typeof each);
    if ((scalar(value) && scalar(other)) || (value instanceof Tuple && other instanceof Tuple)) {
        return typeName(value) === typeName(other) && equal(value, other)
            ? unsupported("sameas of equal values")
            : false;
    }
    return value === other;
}

function isSequence(value: Value): boolean {
    const hasItems = value instanceof Tuple || value instanceof Dict || value instanceof Range || isList(value);
    return hasItems || typeof value === "string" || value instanceof Markup || value instanceof Undefined;
}

function isIterable(value: Value): boolean {
    return (
        value instanceof Markup || value instanceof Lazy || value instanceof DictView || tryIterate(value) !== undefined
    );
}

function has(names: ReadonlyMap<string, unknown>, value: Value): boolean {
    hashed(value);
    return typeof value === "string" && names.has(value);
}

/** The tests by name. */
export const TESTS: ReadonlyMap<string, Test> = new Map<string, Test>([
    simple("defined", (value) => !(value instanceof Undefined)),
    simple("undefined", (value) => value instanceof Undefined),
    simple("none", (value) => value === null),
    simple("boolean", (value) => typeof value === "boolean"),
    simple("true", (value) => value === true),
    simple("false", (value) => value === false),
    simple("integer", (value) => typeof value === "bigint"),
    simple("float", (value) => typeof value === "number"),
    simple("number", isNumber),
    simple("string", (value) => typeof value === "string" || value instanceof Markup),
    simple("mapping", (value) => value instanceof Dict),
    simple("sequence", isSequence),
    simple("iterable", isIterable),
    simple(
        "callable",
        (value) => value instanceof Undefined || (value instanceof TemplateObject && value.isCallable()),
    ),
    simple("escaped", (value) => value instanceof Markup),
    simple("lower", (value) => hasCase(str(value), false)),
    simple("upper", (value) => hasCase(str(value), true)),
    simple("filter", (value) => has(FILTERS, value)),
    simple("test", (value) => has(TESTS, value)),
    ["odd", (engine, value) => remainderIs(engine, value, 2n, 1n)],
    ["even", (engine, value) => remainderIs(engine, value, 2n, 0n)],
    [
        "divisibleby",
        (engine, value, args) => remainderIs(engine, value, bindPositional("divisibleby", args, 1, 1)[0]!, 0n),
    ],
    ["sameas", (_engine, value, args) => isSame(value, bindPositional("sameas", args, 1, 1)[0]!)],
    ...comparison("in", "in"),
    ...comparison("==", "==", "eq", "equalto"),
    ...comparison("!=", "!=", "ne"),
    ...comparison(">", ">", "gt", "greaterthan"),
    ...comparison(">=", ">=", "ge"),
    ...comparison("<", "<", "lt", "lessthan"),
    ...comparison("<=", "<=", "le"),
]);
