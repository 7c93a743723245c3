/** A reader and a writer of protobuf, the format of ONNX files. */

import { BundleError } from "../errors.js";

export const VARINT = 0;
export const FIXED64 = 1;
export const BYTES = 2;
export const FIXED32 = 5;

/** A field of a message. */
export interface ProtobufField {
    readonly number: number;
    /** VARINT, FIXED64, BYTES or FIXED32. */
    readonly wire: number;
    /** The value of a varint as a signed 64-bit integer; rounded if it is beyond 2^53. */
    readonly integer: number;
    /** The content for the other wire types: a view of the message. */
    readonly bytes: Uint8Array;
    /** The whole field with its tag: a view of the message. */
    readonly whole: Uint8Array;
}

const NOTHING = new Uint8Array(0);

/** Reads the fields of one message, one after the other. */
export class ProtobufReader {
    private readonly message: Uint8Array;
    private readonly where: string;
    private at = 0;

    /** `where` names the file in messages of errors. */
    constructor(message: Uint8Array, where: string) {
        this.message = message;
        this.where = where;
    }

    /**
     * Return the next field, or undefined at the end of the message.
     *
     * @throws BundleError The bytes are no message.
     */
    next(): ProtobufField | undefined {
        if (this.at === this.message.length) return undefined;
        const start = this.at;
        const tag = this.unsigned();
        const wire = tag % 8;
        let integer = 0;
        let bytes: Uint8Array = NOTHING;
        if (wire === VARINT) {
            integer = this.signed();
        } else {
            const size = this.sizeOf(wire);
            if (size > this.message.length - this.at) this.refuse("a field that is longer than its message");
            bytes = this.message.subarray(this.at, this.at + size);
            this.at += size;
        }
        return { number: Math.floor(tag / 8), wire, integer, bytes, whole: this.message.subarray(start, this.at) };
    }

    private sizeOf(wire: number): number {
        if (wire === BYTES) return this.unsigned();
        if (wire === FIXED64) return 8;
        if (wire === FIXED32) return 4;
        return this.refuse("an unknown wire type");
    }

    private unsigned(): number {
        const first = this.message[this.at];
        if (first === undefined || first >= 0x80) return Number(this.varint());
        this.at += 1;
        return first;
    }

    private signed(): number {
        const first = this.message[this.at];
        if (first === undefined || first >= 0x80) return Number(BigInt.asIntN(64, this.varint()));
        this.at += 1;
        return first;
    }

    private varint(): bigint {
        let value = 0n;
        for (let index = 0; index < 10; index++) {
            const byte = this.message[this.at];
            if (byte === undefined) return this.refuse("the end of a message inside a number");
            this.at += 1;
            if (index === 9 && byte > 1) break;
            value |= BigInt(byte & 0x7f) << BigInt(7 * index);
            if (byte < 0x80) return value;
        }
        return this.refuse("a number of more than 64 bits");
    }

    private refuse(found: string): never {
        throw new BundleError(`${this.where}: is not an ONNX file: found ${found}; export the bundle again`);
    }
}

/** Return the bytes of a field that holds a non-negative integer. */
export function integerField(number: number, value: number): Uint8Array {
    return Uint8Array.from([...varintBytes(number * 8 + VARINT), ...varintBytes(value)]);
}

/** Return the bytes of a field that holds a text, bytes or a message. */
export function bytesField(number: number, content: Uint8Array | string): Uint8Array {
    const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
    const head = Uint8Array.from([...varintBytes(number * 8 + BYTES), ...varintBytes(bytes.length)]);
    return joinBytes([head, bytes]);
}

/** Return the parts one after the other. */
export function joinBytes(parts: readonly Uint8Array[]): Uint8Array {
    const joined = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
    let at = 0;
    for (const part of parts) {
        joined.set(part, at);
        at += part.length;
    }
    return joined;
}

function varintBytes(value: number): number[] {
    const bytes: number[] = [];
    let rest = value;
    while (rest >= 0x80) {
        bytes.push((rest % 0x80) + 0x80);
        rest = Math.floor(rest / 0x80);
    }
    bytes.push(rest);
    return bytes;
}
