/** The methods of texts. */

import { bind, bindPositional, index, text } from "./calls.js";
import {
    characters,
    CHARACTER_TESTS,
    isAscii,
    isCased,
    isLower,
    isSpace,
    isUpper,
    length,
    strip,
    titleCase,
} from "./characters.js";
import type { Engine } from "./engine.js";
import { fail } from "./failures.js";
import { formatText } from "./formatting.js";
import { checkWidth } from "./limits.js";
import { iterate, Tuple, type Arguments, type Value } from "./values.js";

type Method = (engine: Engine, self: string, args: Arguments) => Value;

const BREAKS = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/g;

/** Return the lines of a text as Python's `splitlines` does. */
export function splitLines(self: string, keepEnds = false): string[] {
    const lines: string[] = [];
    let start = 0;
    for (const found of self.matchAll(BREAKS)) {
        const end = found.index + found[0].length;
        lines.push(self.slice(start, keepEnds ? end : found.index));
        start = end;
    }
    return start < self.length ? [...lines, self.slice(start)] : lines;
}

/** Return a text without characters of a set, or without white space, at its start, its end or both. */
export function stripped(self: string, chars: Value, start: boolean, end: boolean): string {
    if (chars === null) {
        return strip(self, isSpace, start, end);
    }
    const set = new Set(characters(text("strip", chars)));
    return strip(self, (character) => set.has(character), start, end);
}

function stripMethod(name: string, start: boolean, end: boolean): Method {
    return (_, self, args) => stripped(self, bindPositional(name, args, 0, 1)[0] ?? null, start, end);
}

/** Return a text in which the first `count` places of `old` are `replacement`; all places if `count` is negative. */
export function replaced(engine: Engine, self: string, old: string, replacement: string, count: number): string {
    const parts = old === "" ? ["", ...characters(self), ""] : self.split(old);
    const places = Math.min(parts.length - 1, count < 0 ? Infinity : count);
    engine.work.add(places * replacement.length);
    return parts.slice(0, places + 1).join(replacement) + (places + 1 < parts.length ? rest(parts, places, old) : "");
}

function rest(parts: readonly string[], places: number, old: string): string {
    return old + parts.slice(places + 1).join(old);
}

function split(name: string, fromEnd: boolean): Method {
    return (_, self, args) => {
        const [separator, most] = bind(name, args, ["sep", "maxsplit"], 0);
        const limit = most === undefined ? -1 : index(name, most);
        const parts =
            separator === undefined || separator === null
                ? splitSpaces(self, limit, fromEnd)
                : splitBy(name, self, separator, limit, fromEnd);
        return parts;
    };
}

function splitBy(name: string, self: string, separator: Value, limit: number, fromEnd: boolean): string[] {
    const by = text(name, separator);
    if (by === "") {
        fail("empty separator");
    }
    if (limit < 0) {
        return self.split(by);
    }
    const parts: string[] = [];
    let left = self;
    while (parts.length < limit) {
        const at = fromEnd ? left.lastIndexOf(by) : left.indexOf(by);
        if (at < 0) {
            break;
        }
        parts.push(fromEnd ? left.slice(at + by.length) : left.slice(0, at));
        left = fromEnd ? left.slice(0, at) : left.slice(at + by.length);
    }
    parts.push(left);
    return fromEnd ? parts.reverse() : parts;
}

function splitSpaces(self: string, limit: number, fromEnd: boolean): string[] {
    const all = fromEnd ? characters(self).reverse() : characters(self);
    const parts: string[] = [];
    let at = 0;
    for (;;) {
        while (at < all.length && isSpace(all[at]!)) {
            at += 1;
        }
        if (at === all.length) {
            break;
        }
        const last = limit >= 0 && parts.length >= limit;
        let end = at;
        while (end < all.length && (last || !isSpace(all[end]!))) {
            end += 1;
        }
        let word = all.slice(at, end);
        if (last) {
            while (isSpace(word.at(-1)!)) {
                word = word.slice(0, -1);
            }
        }
        parts.push((fromEnd ? word.reverse() : word).join(""));
        at = end;
    }
    return fromEnd ? parts.reverse() : parts;
}

function partition(name: string, fromEnd: boolean): Method {
    return (_, self, args) => {
        const by = text(name, bindPositional(name, args, 1, 1)[0]!);
        if (by === "") {
            fail("empty separator");
        }
        const at = fromEnd ? self.lastIndexOf(by) : self.indexOf(by);
        if (at < 0) {
            return new Tuple(fromEnd ? ["", "", self] : [self, "", ""]);
        }
        return new Tuple([self.slice(0, at), by, self.slice(at + by.length)]);
    };
}

/** Return the part of a text between two optional indices, and the index of its first character. */
function range(
    name: string,
    self: string,
    start: Value | undefined,
    stop: Value | undefined,
): [string, number] | undefined {
    const size = length(self);
    const bound = (value: Value | undefined, missing: number): number => {
        if (value === undefined || value === null) {
            return missing;
        }
        const number = index(name, value);
        return number < 0 ? Math.max(0, number + size) : number;
    };
    const from = bound(start, 0);
    const to = Math.min(bound(stop, size), size);
    if (from > to || from > size) {
        return undefined;
    }
    const part = isAscii(self) ? self.slice(from, to) : characters(self).slice(from, to).join("");
    return [part, from];
}

function find(name: string, fromEnd: boolean, missing: () => bigint): Method {
    return (_, self, args) => {
        const [wanted, start, stop] = bindPositional(name, args, 1, 3);
        const needle = text(name, wanted!);
        const part = range(name, self, start, stop);
        if (part === undefined) {
            return missing();
        }
        const at = fromEnd ? part[0].lastIndexOf(needle) : part[0].indexOf(needle);
        return at < 0 ? missing() : BigInt(length(part[0].slice(0, at)) + part[1]);
    };
}

function affix(name: "startsWith" | "endsWith"): Method {
    const called = name.toLowerCase();
    return (_, self, args) => {
        const [wanted, start, stop] = bindPositional(called, args, 1, 3);
        const part = range(called, self, start, stop);
        const options = wanted instanceof Tuple ? wanted.items : [wanted!];
        return options.map((each) => text(called, each)).some((each) => part?.[0][name](each) === true);
    };
}

function pad(name: string, before: (missing: number, width: number) => number): Method {
    return (_, self, args) => {
        const [width, fill] = bindPositional(name, args, 1, 2);
        const size = index(name, width!);
        checkWidth(name, size);
        const character = fill === undefined ? " " : text(name, fill);
        if (length(character) !== 1) {
            fail("The fill character must be exactly one character long");
        }
        const missing = Math.max(0, size - length(self));
        const left = before(missing, size);
        return character.repeat(left) + self + character.repeat(missing - left);
    };
}

function center(missing: number, width: number): number {
    return Math.floor(missing / 2) + (missing & width & 1);
}

/** Return a text in the middle of a width. */
export function centered(self: string, width: number): string {
    const missing = Math.max(0, width - length(self));
    const left = center(missing, width);
    return " ".repeat(left) + self + " ".repeat(missing - left);
}

/** Return a text whose first character is a capital letter. */
export function capitalized(self: string): string {
    const [first, ...others] = characters(self);
    return first === undefined ? "" : titleCase(first) + others.join("").toLowerCase();
}

function title(self: string): string {
    let inWord = false;
    let result = "";
    for (const character of characters(self)) {
        result += inWord ? character.toLowerCase() : isCased(character) ? titleCase(character) : character;
        inWord = isCased(character);
    }
    return result;
}

function zfill(self: string, width: number): string {
    const sign = /^[-+]/.exec(self)?.[0] ?? "";
    return sign + "0".repeat(Math.max(0, width - length(self))) + self.slice(sign.length);
}

/** Return whether a text has a letter with case, and all such letters have this case. */
export function hasCase(self: string, upper: boolean): boolean {
    const all = characters(self).filter(isCased);
    return all.length > 0 && all.every(upper ? isUpper : isLower);
}

function plain(name: string, run: (self: string) => Value): [string, Method] {
    return [
        name,
        (_, self, args) => {
            bindPositional(name, args, 0, 0);
            return run(self);
        },
    ];
}

function affixRemover(name: string, atStart: boolean): Method {
    return (_, self, args) => {
        const part = text(name, bindPositional(name, args, 1, 1)[0]!);
        if (atStart) {
            return self.startsWith(part) ? self.slice(part.length) : self;
        }
        return self.endsWith(part) ? self.slice(0, self.length - part.length) : self;
    };
}

const notFound = (): never => fail("substring not found");

export const TEXT_METHODS: ReadonlyMap<string, Method> = new Map<string, Method>([
    plain("upper", (self) => self.toUpperCase()),
    plain("lower", (self) => self.toLowerCase()),
    plain("title", title),
    plain("capitalize", capitalized),
    plain("isupper", (self) => hasCase(self, true)),
    plain("islower", (self) => hasCase(self, false)),
    plain("isascii", isAscii),
    ...Array.from(CHARACTER_TESTS, ([name, test]) =>
        plain(name, (self) => {
            const all = characters(self).map(test);
            return all.length > 0 && all.every(Boolean);
        }),
    ),
    ["strip", stripMethod("strip", true, true)],
    ["lstrip", stripMethod("lstrip", true, false)],
    ["rstrip", stripMethod("rstrip", false, true)],
    ["split", split("split", false)],
    ["rsplit", split("rsplit", true)],
    ["splitlines", (_, self, args) => splitLines(self, Boolean(bind("splitlines", args, ["keepends"], 0)[0] ?? false))],
    ["partition", partition("partition", false)],
    ["rpartition", partition("rpartition", true)],
    ["find", find("find", false, () => -1n)],
    ["rfind", find("rfind", true, () => -1n)],
    ["index", find("index", false, notFound)],
    ["rindex", find("rindex", true, notFound)],
    [
        "count",
        (_, self, args) => {
            const [wanted, start, stop] = bindPositional("count", args, 1, 3);
            const part = range("count", self, start, stop);
            const needle = text("count", wanted!);
            if (part === undefined) {
                return 0n;
            }
            return BigInt(needle === "" ? length(part[0]) + 1 : part[0].split(needle).length - 1);
        },
    ],
    ["startswith", affix("startsWith")],
    ["endswith", affix("endsWith")],
    ["removeprefix", affixRemover("removeprefix", true)],
    ["removesuffix", affixRemover("removesuffix", false)],
    [
        "replace",
        (engine, self, args) => {
            const [old, replacement, count] = bindPositional("replace", args, 2, 3);
            const places = count === undefined ? -1 : index("replace", count);
            return replaced(engine, self, text("replace", old!), text("replace", replacement!), places);
        },
    ],
    [
        "join",
        (engine, self, args) => {
            const [items] = bindPositional("join", args, 1, 1);
            const texts: string[] = [];
            for (const item of iterate(items!)) {
                texts.push(text("join", item));
                engine.work.add(texts.at(-1)!.length + self.length);
            }
            return texts.join(self);
        },
    ],
    ["center", pad("center", center)],
    ["ljust", pad("ljust", () => 0)],
    ["rjust", pad("rjust", (missing) => missing)],
    [
        "zfill",
        (_, self, args) => {
            const width = index("zfill", bindPositional("zfill", args, 1, 1)[0]!);
            checkWidth("zfill", width);
            return zfill(self, width);
        },
    ],
    ["format", (engine, self, args) => formatText(engine, self, args)],
]);
