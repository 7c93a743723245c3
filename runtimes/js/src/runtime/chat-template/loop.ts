/** The variable `loop` of a loop. */

import { bindPositional } from "./calls.js";
import { fail } from "./failures.js";
import { Callable, equal, orElse, sizeOf, TemplateObject, Undefined, type Arguments, type Value } from "./values.js";

/** Renders the body of a recursive loop with other items. */
export type Recursion = (items: Value, depth: number) => string;

export class Loop extends TemplateObject {
    readonly typeName = "LoopContext";
    private readonly iterator: Iterator<Value>;
    private rest: Value[] = [];
    private index = -1;
    private length: number | undefined;
    private current: Value | undefined;
    private before: Value | undefined;
    private lastChanged: readonly Value[] | undefined;

    constructor(
        source: Value | undefined,
        items: Iterable<Value>,
        private readonly depth: number,
        private readonly recursion: Recursion | undefined,
    ) {
        super();
        this.iterator = items[Symbol.iterator]();
        this.length = source === undefined ? undefined : sizeOf(source);
    }

    /** Return the next item; undefined at the end. */
    next(): Value | undefined {
        const item = this.peek();
        if (item !== undefined) {
            this.rest.shift();
            this.index += 1;
            this.before = this.current;
            this.current = item;
        }
        return item;
    }

    private peek(): Value | undefined {
        if (this.rest.length === 0) {
            const result = this.iterator.next();
            if (result.done === true) {
                return undefined;
            }
            this.rest.push(result.value);
        }
        return this.rest[0];
    }

    private count(): number {
        if (this.length === undefined) {
            for (let next = this.iterator.next(); next.done !== true; next = this.iterator.next()) {
                this.rest.push(next.value);
            }
            this.length = this.index + 1 + this.rest.length;
        }
        return this.length;
    }

    override attribute(name: string): Value | undefined {
        switch (name) {
            case "index":
                return BigInt(this.index + 1);
            case "index0":
                return BigInt(this.index);
            case "revindex":
                return BigInt(this.count() - this.index);
            case "revindex0":
                return BigInt(this.count() - this.index - 1);
            case "length":
                return BigInt(this.count());
            case "first":
                return this.index === 0;
            case "last":
                return this.peek() === undefined;
            case "depth":
                return BigInt(this.depth + 1);
            case "depth0":
                return BigInt(this.depth);
            case "previtem":
                return orElse(this.before, new Undefined("there is no previous item"));
            case "nextitem":
                return orElse(this.peek(), new Undefined("there is no next item"));
            case "cycle":
                return new Callable(name, (args) => this.cycle(args));
            case "changed":
                return new Callable(name, (args) => this.changed(args));
            default:
                return undefined;
        }
    }

    private cycle(args: Arguments): Value {
        const values = bindPositional("cycle", args, 0, args.positional.length);
        return values.length === 0 ? fail("no items for cycling given") : values[this.index % values.length]!;
    }

    private changed(args: Arguments): boolean {
        bindPositional("changed", args, 0, args.positional.length);
        const { lastChanged } = this;
        this.lastChanged = args.positional;
        return lastChanged === undefined || !equal(lastChanged, args.positional);
    }

    override text(): string {
        return `<LoopContext ${this.index + 1}/${this.count()}>`;
    }

    override size(): number {
        return this.count();
    }

    override isCallable(): boolean {
        return true;
    }

    override call(args: Arguments): Value {
        const [items] = bindPositional("loop", args, 1, 1);
        return this.recursion === undefined
            ? fail("The loop must have the 'recursive' marker to be called recursively.")
            : this.recursion(items!, this.depth + 1);
    }
}
