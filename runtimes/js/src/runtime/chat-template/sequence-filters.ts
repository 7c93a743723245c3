/** Jinja's filters of lists and objects. */

import { bind, bindPositional } from "./calls.js";
import { characters } from "./characters.js";
import type { Engine, Operation } from "./engine.js";
import { fail, unsupported } from "./failures.js";
import { binary } from "./operators.js";
import { str } from "./text.js";
import {
    Dict,
    equal,
    hashed,
    isTrue,
    iterate,
    Lazy,
    lessThan,
    Markup,
    orElse,
    sizeOf,
    TemplateObject,
    Tuple,
    tryIterate,
    typeName,
    Undefined,
    type Arguments,
    type Value,
} from "./values.js";

type Getter = (value: Value) => Value;

/** Return a copy of the items of a value. Each item counts as work. */
function listed(engine: Engine, value: Value): Value[] {
    const items: Value[] = [];
    for (const item of iterate(value)) {
        engine.work.add(0);
        items.push(item);
    }
    return items;
}

function ignoreCase(value: Value): Value {
    if (value instanceof Markup) {
        return unsupported("the order of escaped texts");
    }
    return typeof value === "string" ? value.toLowerCase() : value;
}

/** Return a function that reads an attribute such as "function.name" or "0.role" of a value. */
function getter(engine: Engine, attribute: Value, missing: Value | undefined, postprocess?: Getter): Getter {
    const parts: Value[] =
        typeof attribute === "string"
            ? attribute.split(".").map((part) => (/^\d+$/.test(part) ? BigInt(part) : part))
            : attribute === null
              ? []
              : [attribute];
    return (value) => {
        let found = value;
        for (const part of parts) {
            found = engine.item(found, part);
            if (missing !== undefined && missing !== null && found instanceof Undefined) {
                found = missing;
            }
        }
        return postprocess === undefined ? found : postprocess(found);
    };
}

function sorted(engine: Engine, items: readonly Value[], key: Getter, reverse: boolean): Value[] {
    const keyed = items.map((value) => ({ value, key: key(value) }));
    const order = reverse ? -1 : 1;
    keyed.sort((left, right) => {
        engine.work.add(0);
        return lessThan(left.key, right.key) ? -order : lessThan(right.key, left.key) ? order : 0;
    });
    return keyed.map((each) => each.value);
}

const sort: Operation = (engine, value, args) => {
    const [reverse, sensitive, attribute] = bind("sort", args, ["reverse", "case_sensitive", "attribute"], 0);
    const attributes: Value[] = typeof attribute === "string" ? attribute.split(",") : [attribute ?? null];
    const postprocess = isTrue(sensitive ?? false) ? undefined : ignoreCase;
    const getters = attributes.map((each) => getter(engine, each, undefined, postprocess));
    const key: Getter = (item) => getters.map((each) => each(item));
    return sorted(engine, listed(engine, value), key, isTrue(reverse ?? false));
};

const dictsort: Operation = (engine, value, args) => {
    const [sensitive, by, reverse] = bind("dictsort", args, ["case_sensitive", "by", "reverse"], 0);
    if (by !== undefined && by !== "key" && by !== "value") {
        fail('You can only sort by either "key" or "value"');
    }
    if (!(value instanceof Dict)) {
        return value instanceof Undefined ? value.fail() : fail(`'${typeName(value)}' object has no attribute 'items'`);
    }
    const position = by === "value" ? 1 : 0;
    const items = value.items().map((pair) => new Tuple(pair));
    const key: Getter = (item) => {
        const part = (item as Tuple).items[position]!;
        return isTrue(sensitive ?? false) ? part : ignoreCase(part);
    };
    return sorted(engine, items, key, isTrue(reverse ?? false));
};

const groupby: Operation = (engine, value, args) => {
    const names = ["attribute", "default", "case_sensitive"];
    const [attribute, missing, sensitive] = bind("groupby", args, names, 1);
    const exact = getter(engine, attribute!, missing);
    const key = isTrue(sensitive ?? false) ? exact : getter(engine, attribute!, missing, ignoreCase);
    const groups: { key: Value; items: Value[] }[] = [];
    for (const item of sorted(engine, listed(engine, value), key, false)) {
        const itemKey = key(item);
        const last = groups.at(-1);
        if (last !== undefined && equal(last.key, itemKey)) {
            last.items.push(item);
        } else {
            groups.push({ key: itemKey, items: [item] });
        }
    }
    return groups.map(({ items }) => new Tuple([exact(items[0]!), items], ["grouper", "list"]));
};

function* uniqueItems(engine: Engine, value: Value, key: Getter): Generator<Value> {
    const seen = new Set<unknown>();
    for (const item of iterate(value)) {
        engine.work.add(0);
        const hash = hashed(key(item));
        if (!seen.has(hash)) {
            seen.add(hash);
            yield item;
        }
    }
}

const unique: Operation = (engine, value, args) => {
    const [sensitive, attribute] = bind("unique", args, ["case_sensitive", "attribute"], 0);
    const postprocess = isTrue(sensitive ?? false) ? undefined : ignoreCase;
    return new Lazy(uniqueItems(engine, value, getter(engine, attribute ?? null, undefined, postprocess)));
};

function extreme(name: string, isBetter: (value: Value, best: Value) => boolean): Operation {
    return (engine, value, args) => {
        const [sensitive, attribute] = bind(name, args, ["case_sensitive", "attribute"], 0);
        const postprocess = isTrue(sensitive ?? false) ? undefined : ignoreCase;
        const key = getter(engine, attribute ?? null, undefined, postprocess);
        let best: { item: Value; key: Value } | undefined;
        for (const item of iterate(value)) {
            engine.work.add(0);
            const itemKey = key(item);
            if (best === undefined || isBetter(itemKey, best.key)) {
                best = { item, key: itemKey };
            }
        }
        return best === undefined ? new Undefined("No aggregated item, sequence was empty.") : best.item;
    };
}

const sum: Operation = (engine, value, args) => {
    const [attribute, start] = bind("sum", args, ["attribute", "start"], 0);
    const key = getter(engine, attribute ?? null, undefined);
    let total: Value = orElse(start, 0n);
    if (typeof total === "string") {
        fail("sum() can't sum strings");
    }
    for (const item of iterate(value)) {
        total = binary(engine, "+", total, key(item));
        engine.work.add(sizeOf(total) ?? 0);
    }
    return total;
};

const join: Operation = (engine, value, args) => {
    const [separator, attribute] = bind("join", args, ["d", "attribute"], 0);
    const key = getter(engine, attribute ?? null, undefined);
    const between = str(orElse(separator, ""));
    const texts: string[] = [];
    for (const item of iterate(value)) {
        texts.push(str(key(item)));
        engine.work.add(texts.at(-1)!.length + between.length);
    }
    return texts.join(between);
};

const first: Operation = (_engine, value, args) => {
    bindPositional("first", args, 0, 0);
    const result = iterate(value)[Symbol.iterator]().next();
    return result.done === true ? new Undefined("No first item, sequence was empty.") : result.value;
};

/** Return the items of a value from the last to the first; undefined if Python's `reversed` refuses the value. */
function reversed(value: Value): Value[] | undefined {
    const items = value instanceof TemplateObject && value.size() === undefined ? undefined : tryIterate(value);
    return items === undefined ? undefined : [...items].reverse();
}

const last: Operation = (_engine, value, args) => {
    bindPositional("last", args, 0, 0);
    const items = reversed(value) ?? fail(`'${typeName(value)}' object is not reversible`);
    return orElse(items[0], new Undefined("No last item, sequence was empty."));
};

const reverse: Operation = (engine, value, args) => {
    bindPositional("reverse", args, 0, 0);
    if (typeof value === "string") {
        return characters(value).reverse().join("");
    }
    const items = reversed(value);
    return items === undefined ? listed(engine, value).reverse() : new Lazy(items);
};

const items: Operation = (_engine, value, args) => {
    bindPositional("items", args, 0, 0);
    if (value instanceof Undefined) {
        return new Lazy([]);
    }
    if (!(value instanceof Dict)) {
        fail("Can only get item pairs from a mapping.");
    }
    return new Lazy(value.items().map((pair) => new Tuple(pair)));
};

function* mapped(engine: Engine, value: Value, args: Arguments): Generator<Value> {
    // An empty value needs no arguments.
    if (!isTrue(value)) {
        return;
    }
    const run = mapping(engine, args);
    for (const item of iterate(value)) {
        engine.work.add(0);
        yield run(item);
    }
}

function mapping(engine: Engine, { positional, keywords }: Arguments): Getter {
    const [name, ...rest] = positional;
    if (name === undefined) {
        const attribute = keywords.get("attribute");
        if (attribute === undefined) {
            return fail("map requires a filter argument");
        }
        const extra = [...keywords.keys()].find((each) => each !== "attribute" && each !== "default");
        return extra === undefined
            ? getter(engine, attribute, keywords.get("default"))
            : fail(`Unexpected keyword argument '${extra}'`);
    }
    const filter = typeof name === "string" ? name : fail("map: the name of the filter is not a text");
    return (item) => engine.filter(filter, item, { positional: rest, keywords });
}

function selection(keeps: boolean, byAttribute: boolean): Operation {
    function* selected(engine: Engine, value: Value, { positional, keywords }: Arguments): Generator<Value> {
        if (!isTrue(value)) {
            return;
        }
        const rest = [...positional];
        let key: Getter = (item) => item;
        if (byAttribute) {
            key = getter(
                engine,
                rest.length > 0 ? rest.shift()! : fail("Missing parameter for attribute name"),
                undefined,
            );
        }
        const name = rest.shift();
        for (const item of iterate(value)) {
            engine.work.add(0);
            const found = key(item);
            const holds =
                name === undefined
                    ? isTrue(found)
                    : typeof name === "string"
                      ? engine.test(name, found, { positional: rest, keywords })
                      : fail("the name of a test is not a text");
            if (holds === keeps) {
                yield item;
            }
        }
    }
    return (engine, value, args) => new Lazy(selected(engine, value, args));
}

export const SEQUENCE_FILTERS: readonly [string, Operation][] = [
    ["dictsort", dictsort],
    ["first", first],
    ["groupby", groupby],
    ["items", items],
    ["join", join],
    ["last", last],
    [
        "list",
        (engine, value, args) => {
            bindPositional("list", args, 0, 0);
            return listed(engine, value);
        },
    ],
    ["map", (engine, value, args) => new Lazy(mapped(engine, value, args))],
    ["max", extreme("max", (value, best) => lessThan(best, value, ">"))],
    ["min", extreme("min", (value, best) => lessThan(value, best))],
    ["reject", selection(false, false)],
    ["rejectattr", selection(false, true)],
    ["reverse", reverse],
    ["select", selection(true, false)],
    ["selectattr", selection(true, true)],
    ["sort", sort],
    ["sum", sum],
    ["unique", unique],
];
