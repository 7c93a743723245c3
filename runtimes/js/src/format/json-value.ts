/** The values of a JSON document, with typed access to them. json.ts parses documents. */

import { BundleError, type MolkvError } from "../errors.js";

/** Makes the error that a reader of untrusted bytes throws: a bundle error or a request error. */
export type MakeError = (message: string) => MolkvError;

/** "integer" is a number without fraction and exponent: 61.0 has the type "number". */
export type JsonType = "null" | "boolean" | "integer" | "number" | "text" | "list" | "object";

/** Where a document comes from, and the errors of its reader. */
export interface Document {
    readonly where: string;
    readonly makeError: MakeError;
}

/** What a value holds, by its type. */
export type Content = null | boolean | number | string | readonly JsonValue[] | ReadonlyMap<string, JsonValue>;

const typeNames: Readonly<Record<JsonType, string>> = {
    null: "null",
    boolean: "a boolean",
    integer: "an integer",
    number: "a number",
    text: "a text",
    list: "a list",
    object: "an object",
};

/** Return the beginning of an untrusted text for a message: at most 80 characters, in quotation marks, on one line. */
export function quoted(text: string): string {
    return JSON.stringify(text.slice(0, 80));
}

/** Return the error of a bundle that is damaged. */
export function bundleError(message: string): MolkvError {
    return new BundleError(message);
}

/**
 * A value of a document, and its place in it. Each method that returns a value of TypeScript throws an error of the
 * document's kind if the JSON value has another type or range.
 */
export class JsonValue {
    /** @internal */
    constructor(
        readonly type: JsonType,
        private readonly content: Content,
        private readonly document: Document,
        private readonly parent: JsonValue | undefined,
        private readonly key: string | number,
    ) {}

    get isNull(): boolean {
        return this.type === "null";
    }

    boolean(): boolean {
        return this.expect("boolean") as boolean;
    }

    /** Return an integer from `least` to `most`, which are safe integers. */
    integer(least: number, most: number): number {
        const value = this.expect("integer") as number;
        if (value >= least && value <= most) return value;
        throw this.error(String(value), least === most ? String(least) : `${least} to ${most}`);
    }

    /** Return a number, which may be written as an integer. */
    number(): number {
        const value = this.expect(this.type === "integer" ? "integer" : "number") as number;
        if (Number.isFinite(value)) return value;
        throw this.error("a larger number", "a number that a float64 can hold");
    }

    text(): string {
        return this.expect("text") as string;
    }

    /** Return a text that is one of `allowed`. */
    oneOf<Text extends string>(allowed: readonly Text[]): Text {
        const text = this.text();
        const found = allowed.find((one) => one === text);
        if (found !== undefined) return found;
        throw this.error(quoted(text), allowed.map((one) => `"${one}"`).join(" or "));
    }

    /** Return the items of a list. */
    list(): readonly JsonValue[] {
        return this.expect("list") as readonly JsonValue[];
    }

    /** Return the fields of an object, in the order of the file. */
    fields(): ReadonlyMap<string, JsonValue> {
        return this.expect("object") as ReadonlyMap<string, JsonValue>;
    }

    /** Return the field of an object. It is an error if there is no such field. */
    get(name: string): JsonValue {
        const found = this.find(name);
        if (found !== undefined) return found;
        throw this.error(`no field "${name}"`, "one");
    }

    /** Return the field of an object, or undefined. */
    find(name: string): JsonValue | undefined {
        return this.fields().get(name);
    }

    /** Check that an object has exactly these fields. */
    expectFields(names: readonly string[]): void {
        for (const name of this.fields().keys()) {
            if (names.includes(name)) continue;
            throw this.error(`the unknown field ${quoted(name)}`, `only the fields ${names.join(", ")}`);
        }
        for (const name of names) this.get(name);
    }

    /** Return the error "FILE: FIELD: found FOUND, expected EXPECTED". */
    error(found: string, expected: string): MolkvError {
        return this.document.makeError(`${this.place}: found ${found}, expected ${expected}`);
    }

    /** The document and the path, for messages: "manifest.json: graphs.cpu". */
    get place(): string {
        const { where } = this.document;
        return this.parent === undefined ? where : `${where}: ${this.path}`;
    }

    /** The path in the document, such as "graphs.cpu.files[0].length"; "" for the whole document. */
    get path(): string {
        if (this.parent === undefined) return "";
        const before = this.parent.path;
        if (typeof this.key === "number") return `${before}[${this.key}]`;
        const name = quoted(this.key).slice(1, -1);
        return before === "" ? name : `${before}.${name}`;
    }

    private expect(type: JsonType): Content {
        if (this.type === type) return this.content;
        throw this.error(typeNames[this.type], typeNames[type]);
    }
}
