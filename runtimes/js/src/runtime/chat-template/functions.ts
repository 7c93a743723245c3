/** The functions that a template can call. */

import { bind, bindPositional, integer, text } from "./calls.js";
import { fail, TemplateRefusal, unsupported } from "./failures.js";
import { strftime } from "./strftime.js";
import { repr, str } from "./text.js";
import { Callable, Dict, iterate, orElse, Range, TemplateObject, type Arguments, type Value } from "./values.js";

/** The largest number of items of `range`. */
const MAX_RANGE = 100_000;

/** An object whose attributes a template can set. */
export class Namespace extends TemplateObject {
    readonly typeName = "Namespace";

    constructor(private readonly values: Dict) {
        super();
    }

    override attribute(name: string): Value | undefined {
        return this.values.get(name);
    }

    override text(): string {
        return `<Namespace ${repr(this.values)}>`;
    }

    set(name: string, value: Value): void {
        this.values.set(name, value);
    }
}

class Cycler extends TemplateObject {
    readonly typeName = "Cycler";
    private position = 0;

    constructor(private readonly items: readonly Value[]) {
        super();
    }

    override attribute(name: string): Value | undefined {
        const current = this.items[this.position]!;
        switch (name) {
            case "current":
                return current;
            case "next":
                return new Callable(name, (args) => {
                    bindPositional(name, args, 0, 0);
                    const value = this.items[this.position]!;
                    this.position = (this.position + 1) % this.items.length;
                    return value;
                });
            case "reset":
                return new Callable(name, (args) => {
                    bindPositional(name, args, 0, 0);
                    this.position = 0;
                    return null;
                });
            default:
                return name === "items" || name === "pos" ? unsupported(`cycler.${name}`) : undefined;
        }
    }
}

class Joiner extends TemplateObject {
    readonly typeName = "Joiner";
    private used = false;

    constructor(private readonly separator: Value) {
        super();
    }

    override attribute(name: string): Value | undefined {
        return name === "sep" || name === "used" ? unsupported(`joiner.${name}`) : undefined;
    }

    override isCallable(): boolean {
        return true;
    }

    override call(args: Arguments): Value {
        bindPositional("joiner", args, 0, 0);
        const result = this.used ? this.separator : "";
        this.used = true;
        return result;
    }
}

function range(args: Arguments): Range {
    const given = bindPositional("range", args, 1, 3).filter((each) => each !== undefined);
    const numbers = given.map((each) => integer("range", each));
    const [start, stop, step] =
        numbers.length === 1 ? [0n, numbers[0]!, 1n] : [numbers[0]!, numbers[1]!, numbers[2] ?? 1n];
    if (step === 0n) {
        fail("range() arg 3 must not be zero");
    }
    const result = new Range(start, stop, step);
    return result.size() > MAX_RANGE
        ? fail(`Range too big. The sandbox blocks ranges larger than ${MAX_RANGE}.`)
        : result;
}

function makeDict(args: Arguments): Dict {
    const [source] = bindPositional("dict", { ...args, keywords: new Map() }, 0, 1);
    const dict = new Dict();
    if (source instanceof Dict) {
        source.items().forEach(([key, value]) => {
            dict.set(key, value);
        });
    } else if (source !== undefined) {
        for (const item of iterate(source)) {
            const pair = [...iterate(item)];
            if (pair.length !== 2) {
                fail(`dictionary update sequence element has length ${pair.length}; 2 is required`);
            }
            dict.set(pair[0]!, pair[1]!);
        }
    }
    args.keywords.forEach((value, name) => {
        dict.set(name, value);
    });
    return dict;
}

const fromkeys = new Callable("fromkeys", (args) => {
    const [keys, value] = bindPositional("fromkeys", args, 1, 2);
    return new Dict(Array.from(iterate(keys!), (key) => [key, value ?? null] as const));
});

const FUNCTIONS: readonly Callable[] = [
    new Callable("range", range),
    new Callable("dict", makeDict, new Map([["fromkeys", fromkeys]])),
    new Callable("namespace", (args) => new Namespace(makeDict(args))),
    new Callable("cycler", (args) => {
        if (args.positional.length === 0 || args.keywords.size > 0) {
            fail("at least one item has to be provided");
        }
        return new Cycler(args.positional);
    }),
    new Callable("joiner", (args) => new Joiner(orElse(bind("joiner", args, ["sep"], 0)[0], ", "))),
    new Callable("raise_exception", (args) => {
        throw new TemplateRefusal(str(bind("raise_exception", args, ["message"], 1)[0]!));
    }),
    new Callable("strftime_now", (args) => {
        const [format] = bind("strftime_now", args, ["format"], 1);
        return strftime(text("strftime_now", format!), new Date());
    }),
];

/** The functions by name. */
export const GLOBALS: ReadonlyMap<string, Value> = new Map(FUNCTIONS.map((each) => [each.name, each]));
