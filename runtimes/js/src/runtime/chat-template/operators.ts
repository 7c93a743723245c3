/** The arithmetic operators and comparisons of Python. */

import type { Engine } from "./engine.js";
import { fail, unsupported } from "./failures.js";
import { percent } from "./formatting.js";
import { MAX_BITS } from "./limits.js";
import { bitLength, floatPower, quotient, toFloat } from "./numbers.js";
import {
    contains,
    DictView,
    equal,
    isInteger,
    isList,
    isNumber,
    lessThan,
    Markup,
    numeric,
    sizeOf,
    Tuple,
    typeName,
    Undefined,
    type Value,
} from "./values.js";

/** Return `left operator right`. */
export function binary(engine: Engine, operator: string, left: Value, right: Value): Value {
    checkBits(operator, left, right);
    if (left instanceof Markup || right instanceof Markup) {
        unsupported(`the operator ${operator} of an escaped text`);
    }
    if (operator === "-" && (left instanceof DictView || right instanceof DictView)) {
        unsupported("an operation with views of dicts");
    }
    if (operator === "%" && typeof left === "string") {
        return percent(engine, left, right);
    }
    for (const value of [left, right]) {
        if (value instanceof Undefined) {
            value.fail();
        }
    }
    if (isNumber(left) && isNumber(right)) {
        return arithmetic(operator, numeric(left), numeric(right));
    }
    if (operator === "+") {
        if (typeof left === "string" && typeof right === "string") {
            return left + right;
        }
        if (isList(left) && isList(right)) {
            return [...left, ...right];
        }
        if (left instanceof Tuple && right instanceof Tuple) {
            return new Tuple([...left.items, ...right.items]);
        }
    }
    if (operator === "*" && isInteger(right)) {
        return repeated(engine, left, right) ?? unsupportedOperands(operator, left, right);
    }
    if (operator === "*" && isInteger(left)) {
        return repeated(engine, right, left) ?? unsupportedOperands(operator, left, right);
    }
    return unsupportedOperands(operator, left, right);
}

function unsupportedOperands(operator: string, left: Value, right: Value): never {
    return fail(`unsupported operand type(s) for ${operator}: '${typeName(left)}' and '${typeName(right)}'`);
}

function checkBits(operator: string, left: Value, right: Value): void {
    const bits = [left, right].map((value) => (isInteger(value) ? bitLength(BigInt(value)) : 0));
    if (operator === "**" && isInteger(left) && isInteger(right)) {
        bits.push(bits[0]! * Number(right));
    }
    if (Math.max(...bits) > MAX_BITS) {
        fail(`it computes with integers of more than ${MAX_BITS} bits`);
    }
}

function repeated(engine: Engine, value: Value, count: bigint | boolean): Value | undefined {
    if (BigInt(count) >= 2n ** 63n || BigInt(count) < -(2n ** 63n)) {
        fail("cannot fit 'int' into an index-sized integer");
    }
    const times = BigInt(count) > 0n ? Number(count) : 0;
    const size = sizeOf(value) ?? 0;
    engine.work.add(size * times);
    const used = size === 0 ? 0 : times;
    if (typeof value === "string") {
        return value.repeat(used);
    }
    const repeat = (items: readonly Value[]): Value[] =>
        Array.from({ length: size * used }, (_, index) => items[index % size]!);
    return isList(value) ? repeat(value) : value instanceof Tuple ? new Tuple(repeat(value.items)) : undefined;
}

function arithmetic(operator: string, left: bigint | number, right: bigint | number): bigint | number {
    if (typeof left === "bigint" && typeof right === "bigint") {
        return integers(operator, left, right);
    }
    const a = toFloat(left);
    const b = toFloat(right);
    if (b === 0 && ["/", "//", "%"].includes(operator)) {
        fail("float division by zero");
    }
    switch (operator) {
        case "+":
            return a + b;
        case "-":
            return a - b;
        case "*":
            return a * b;
        case "/":
            return a / b;
        case "**":
            return floatPower(a, b);
        default: {
            const [whole, rest] = floatDivision(a, b);
            return operator === "//" ? whole : rest;
        }
    }
}

function integers(operator: string, left: bigint, right: bigint): bigint | number {
    if (right === 0n && ["/", "//", "%"].includes(operator)) {
        fail("division by zero");
    }
    switch (operator) {
        case "+":
            return left + right;
        case "-":
            return left - right;
        case "*":
            return left * right;
        case "/": {
            const result = quotient(left < 0n ? -left : left, right < 0n ? -right : right);
            return left < 0n !== right < 0n ? -result : result;
        }
        case "**":
            return right < 0n ? floatPower(toFloat(left), toFloat(right)) : left ** right;
        default: {
            const rest = left % right;
            const adjust = rest !== 0n && rest < 0n !== right < 0n;
            return operator === "//" ? left / right - (adjust ? 1n : 0n) : rest + (adjust ? right : 0n);
        }
    }
}

/** Return the quotient, rounded down, and the rest, which has the sign of the divisor. */
function floatDivision(left: number, right: number): [number, number] {
    let rest = left % right;
    let whole = (left - rest) / right;
    if (rest !== 0) {
        if (right < 0 !== rest < 0) {
            rest += right;
            whole -= 1;
        }
    } else {
        rest = right < 0 ? -0 : 0;
    }
    if (whole === 0) {
        return [left / right < 0 || Object.is(left / right, -0) ? -0 : 0, rest];
    }
    const floor = Math.floor(whole);
    return [whole - floor > 0.5 ? floor + 1 : floor, rest];
}

/** Return `+value` or `-value`. */
export function signed(operator: "+" | "-", value: Value): Value {
    if (value instanceof Undefined) {
        value.fail();
    }
    if (!isNumber(value)) {
        fail(`bad operand type for unary ${operator}: '${typeName(value)}'`);
    }
    const number = numeric(value);
    return operator === "+" ? number : -number;
}

/** Return the result of a comparison. */
export function compare(operator: string, left: Value, right: Value): boolean {
    switch (operator) {
        case "==":
            return equal(left, right);
        case "!=":
            return !equal(left, right);
        case "<":
            return lessThan(left, right, operator);
        case ">":
            return lessThan(right, left, operator);
        case "<=":
            return lessThan(left, right, operator) || (!isNaNPair(left, right) && !lessThan(right, left, operator));
        case ">=":
            return lessThan(right, left, operator) || (!isNaNPair(left, right) && !lessThan(left, right, operator));
        case "in":
            return contains(right, left);
        default:
            return !contains(right, left);
    }
}

function isNaNPair(left: Value, right: Value): boolean {
    return Number.isNaN(left) || Number.isNaN(right);
}
