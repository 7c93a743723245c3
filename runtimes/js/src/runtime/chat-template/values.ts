/**
 * The values of a template. They follow Python: `bigint` is int, `number` is float, an array is a list. No value is an
 * object of the caller, and no attribute is a property of JavaScript.
 */

import { characters, compareText, length } from "./characters.js";
import { fail, unsupported } from "./failures.js";

export type Value =
    null | boolean | bigint | number | string | readonly Value[] | Tuple | Dict | Markup | Undefined | TemplateObject;

/** The arguments of a call. */
export interface Arguments {
    readonly positional: readonly Value[];
    readonly keywords: ReadonlyMap<string, Value>;
}

export class Tuple {
    /** `names`: names of the first items, which are attributes. */
    constructor(
        readonly items: readonly Value[],
        readonly names: readonly string[] = [],
    ) {}
}

/** A text that Jinja does not escape again. This driver only prints, compares and joins it. */
export class Markup {
    constructor(readonly text: string) {}
}

/** An undefined value. `message` says why it is undefined. */
export class Undefined {
    constructor(readonly message: string) {}

    /** Raise the failure of an operation that an undefined value does not have. */
    fail(): never {
        return fail(this.message);
    }
}

/** A dict. Keys that are equal in Python, such as 1 and 1.0, are one key. */
export class Dict {
    private readonly entries = new Map<unknown, readonly [Value, Value]>();

    constructor(entries: Iterable<readonly [Value, Value]> = []) {
        for (const [key, value] of entries) {
            this.set(key, value);
        }
    }

    get size(): number {
        return this.entries.size;
    }

    /** Set a value. Only the code that makes a dict calls this: dicts of templates do not change. */
    set(key: Value, value: Value): void {
        const hash = hashed(key);
        this.entries.set(hash, [this.entries.get(hash)?.[0] ?? key, value]);
    }

    get(key: Value): Value | undefined {
        return this.entries.get(hashed(key))?.[1];
    }

    has(key: Value): boolean {
        return this.entries.has(hashed(key));
    }

    items(): (readonly [Value, Value])[] {
        return [...this.entries.values()];
    }

    keys(): Value[] {
        return this.items().map(([key]) => key);
    }

    values(): Value[] {
        return this.items().map(([, value]) => value);
    }
}

/** Attributes that every object has: none. */
const OBJECT_ATTRIBUTES: ReadonlyMap<string, Value> = new Map();

/** The base class of all other objects that a template can hold, such as functions and loops. */
export abstract class TemplateObject {
    abstract readonly typeName: string;

    /** Return an attribute; undefined if there is none. */
    attribute(name: string): Value | undefined {
        return OBJECT_ATTRIBUTES.get(name);
    }

    /** Return the object as a text. */
    text(): string {
        return unsupported(`the text of a ${this.typeName}`);
    }

    /** Return the items; undefined if the object cannot be iterated. */
    iterate(): Iterable<Value> | undefined {
        return undefined;
    }

    /** Return the number of items; undefined if the object has no length. */
    size(): number | undefined {
        return undefined;
    }

    isCallable(): boolean {
        return false;
    }

    call(args: Arguments): Value {
        return fail(`'${this.typeName}' object is not callable (${args.positional.length} arguments)`);
    }
}

/** A function or a method. */
export class Callable extends TemplateObject {
    readonly typeName = "function";

    constructor(
        readonly name: string,
        private readonly run: (args: Arguments) => Value,
        private readonly attributes: ReadonlyMap<string, Value> = new Map(),
    ) {
        super();
    }

    override attribute(name: string): Value | undefined {
        return this.attributes.get(name) ?? unsupported(`the attribute ${name} of a function`);
    }

    override isCallable(): boolean {
        return true;
    }

    override call(args: Arguments): Value {
        return this.run(args);
    }
}

/** A generator: its items can be read once. */
export class Lazy extends TemplateObject {
    readonly typeName = "generator";
    private readonly iterator: Iterator<Value>;

    constructor(items: Iterable<Value>) {
        super();
        this.iterator = items[Symbol.iterator]();
    }

    override iterate(): Iterable<Value> {
        const { iterator } = this;
        // Without `return`, so that a loop that ends early does not end the generator.
        return { [Symbol.iterator]: () => ({ next: () => iterator.next() }) };
    }
}

/** A view of a dict: its keys, values or items. */
export class DictView extends TemplateObject {
    readonly typeName: string;

    constructor(
        readonly kind: "keys" | "values" | "items",
        readonly dict: Dict,
    ) {
        super();
        this.typeName = `dict_${kind}`;
    }

    override iterate(): Iterable<Value> {
        switch (this.kind) {
            case "keys":
                return this.dict.keys();
            case "values":
                return this.dict.values();
            case "items":
                return this.dict.items().map((pair) => new Tuple(pair));
        }
    }

    override size(): number {
        return this.dict.size;
    }
}

/** A range of integers. */
export class Range extends TemplateObject {
    readonly typeName = "range";

    constructor(
        readonly start: bigint,
        readonly stop: bigint,
        readonly step: bigint,
    ) {
        super();
    }

    override text(): string {
        return `range(${this.start}, ${this.stop}${this.step === 1n ? "" : `, ${this.step}`})`;
    }

    override *iterate(): Iterable<Value> {
        for (let at = this.start; this.step > 0n ? at < this.stop : at > this.stop; at += this.step) {
            yield at;
        }
    }

    override size(): number {
        const span = this.step > 0n ? this.stop - this.start : this.start - this.stop;
        const step = this.step > 0n ? this.step : -this.step;
        return span > 0n ? Number((span + step - 1n) / step) : 0;
    }
}

export function isList(value: Value): value is readonly Value[] {
    return Array.isArray(value);
}

/** Whether a value is an int, which includes booleans. */
export function isInteger(value: Value): value is bigint | boolean {
    return typeof value === "bigint" || typeof value === "boolean";
}

export function isNumber(value: Value): value is bigint | boolean | number {
    return isInteger(value) || typeof value === "number";
}

/** Return a number without booleans: true is 1. */
export function numeric(value: bigint | boolean | number): bigint | number {
    return typeof value === "boolean" ? BigInt(value) : value;
}

/** Return the name of a value's type in Python. */
export function typeName(value: Value): string {
    switch (typeof value) {
        case "string":
            return "str";
        case "boolean":
            return "bool";
        case "bigint":
            return "int";
        case "number":
            return "float";
        default:
    }
    if (value === null) {
        return "NoneType";
    }
    if (value instanceof TemplateObject) {
        return value.typeName;
    }
    if (value instanceof Dict) {
        return "dict";
    }
    if (value instanceof Tuple) {
        return "tuple";
    }
    return isList(value) ? "list" : value.constructor.name;
}

/** Return a value, or another one if it is missing. None of Python is not missing. */
export function orElse(value: Value | undefined, other: Value): Value {
    return value === undefined ? other : value;
}

/** Return whether a value counts as true. */
export function isTrue(value: Value): boolean {
    if (value === null || typeof value !== "object") {
        return Boolean(value);
    }
    return sizeOf(value) !== 0;
}

/** Return the length of a value; undefined if it has none. */
export function sizeOf(value: Value): number | undefined {
    if (typeof value === "string") {
        return length(value);
    }
    if (isList(value)) {
        return value.length;
    }
    if (value instanceof Tuple) {
        return value.items.length;
    }
    if (value instanceof Dict) {
        return value.size;
    }
    if (value instanceof Markup) {
        return length(value.text);
    }
    if (value instanceof Undefined) {
        return 0;
    }
    return value instanceof TemplateObject ? value.size() : undefined;
}

/** Return the items of a value; undefined if it cannot be iterated. */
export function tryIterate(value: Value): Iterable<Value> | undefined {
    if (typeof value === "string") {
        return characters(value);
    }
    if (isList(value)) {
        return value;
    }
    if (value instanceof Tuple) {
        return value.items;
    }
    if (value instanceof Dict) {
        return value.keys();
    }
    if (value instanceof Markup) {
        return unsupported("the items of an escaped text");
    }
    if (value instanceof Undefined) {
        return [];
    }
    return value instanceof TemplateObject ? value.iterate() : undefined;
}

/**
 * Return the items of a value.
 *
 * @throws TemplateFailure It cannot be iterated.
 */
export function iterate(value: Value): Iterable<Value> {
    return tryIterate(value) ?? fail(`'${typeName(value)}' object is not iterable`);
}

/** Return a key for a Map: equal values have equal keys. */
export function hashed(value: Value): unknown {
    if (typeof value === "string") {
        return `s${value}`;
    }
    if (isNumber(value)) {
        const number = numeric(value);
        return typeof number === "number" && Number.isInteger(number) ? BigInt(number) : number;
    }
    if (value instanceof Markup) {
        return `s${value.text}`;
    }
    if (value instanceof Undefined) {
        return Undefined;
    }
    if (value instanceof Tuple) {
        return `t${JSON.stringify(value.items.map((each) => tupleKey(hashed(each))))}`;
    }
    if (isList(value) || value instanceof Dict || value instanceof DictView) {
        return fail(`unhashable type: '${typeName(value)}'`);
    }
    return value instanceof Range ? unsupported("a range as a key") : value;
}

function tupleKey(key: unknown): string {
    if (key instanceof TemplateObject) {
        return unsupported(`a ${key.typeName} in a key`);
    }
    return key === Undefined ? "u" : `${typeof key}${String(key)}`;
}

/** Return a Markup as its text, and other values unchanged. */
function withoutMarkup(value: Value): Value {
    return value instanceof Markup ? value.text : value;
}

/** Return whether two values are equal in Python. */
export function equal(first: Value, second: Value): boolean {
    const left = withoutMarkup(first);
    const right = withoutMarkup(second);
    if (isNumber(left) && isNumber(right)) {
        // JavaScript compares a bigint and a number exactly.
        return numeric(left) == numeric(right);
    }
    if (isList(left) && isList(right)) {
        return equalItems(left, right);
    }
    if (left instanceof Tuple && right instanceof Tuple) {
        return equalItems(left.items, right.items);
    }
    if (left instanceof Dict && right instanceof Dict) {
        return (
            left.size === right.size &&
            left.items().every(([key, value]) => {
                const other = right.get(key);
                return other !== undefined && equal(value, other);
            })
        );
    }
    if (left instanceof Undefined && right instanceof Undefined) {
        return true;
    }
    if (left instanceof Range && right instanceof Range) {
        return equalItems([...left.iterate()], [...right.iterate()]);
    }
    if (left instanceof DictView && right instanceof DictView) {
        return unsupported("the comparison of views of dicts");
    }
    return left === right;
}

function equalItems(left: readonly Value[], right: readonly Value[]): boolean {
    return left.length === right.length && left.every((value, index) => equal(value, right[index]!));
}

/** Return whether `left` is less than `right` in Python. */
export function lessThan(first: Value, second: Value, operator = "<"): boolean {
    const left = withoutMarkup(first);
    const right = withoutMarkup(second);
    for (const value of [left, right]) {
        if (value instanceof Undefined) {
            value.fail();
        }
    }
    if (isNumber(left) && isNumber(right)) {
        return numeric(left) < numeric(right);
    }
    if (typeof left === "string" && typeof right === "string") {
        return compareText(left, right) < 0;
    }
    if (isList(left) && isList(right)) {
        return lessItems(left, right, operator);
    }
    if (left instanceof Tuple && right instanceof Tuple) {
        return lessItems(left.items, right.items, operator);
    }
    if (left instanceof DictView && right instanceof DictView) {
        return unsupported("the comparison of views of dicts");
    }
    return fail(`'${operator}' not supported between instances of '${typeName(left)}' and '${typeName(right)}'`);
}

function lessItems(left: readonly Value[], right: readonly Value[], operator: string): boolean {
    const different = left.findIndex((value, index) => index >= right.length || !equal(value, right[index]!));
    if (different < 0) {
        return left.length < right.length;
    }
    return different < right.length && lessThan(left[different]!, right[different]!, operator);
}

/** Return whether a container holds a value. */
export function contains(container: Value, value: Value): boolean {
    if (typeof container === "string" || container instanceof Markup) {
        const text = withoutMarkup(value);
        if (typeof text !== "string") {
            fail(`'in <string>' requires string as left operand, not ${typeName(value)}`);
        }
        return (typeof container === "string" ? container : container.text).includes(text);
    }
    if (container instanceof Dict) {
        return container.has(value);
    }
    const items = tryIterate(container) ?? fail(`argument of type '${typeName(container)}' is not iterable`);
    for (const item of items) {
        if (equal(item, value)) {
            return true;
        }
    }
    return false;
}
