/** SHA-256 (FIPS 180-4). */

const zeros = "0".repeat(64);

/** The longest input that crypto.subtle takes in Node. */
const mostSubtleBytes = 2 ** 31 - 1;

/** The first 32 bits of the fractions of the cube roots of the first 64 primes. */
const constants = makeConstants();

/** Return the SHA-256 of bytes, as 64 lower-case hexadecimal digits. */
export async function sha256(bytes: Uint8Array): Promise<string> {
    // Browsers have crypto.subtle only in secure contexts, and React Native does not have it.
    const subtle = (globalThis as { crypto?: Partial<Crypto> }).crypto?.subtle;
    if (subtle === undefined || bytes.length > mostSubtleBytes) return sha256InScript(bytes);
    // crypto.subtle refuses shared memory, so it gets a copy.
    const isShared = !(bytes.buffer instanceof ArrayBuffer);
    const input = isShared ? new Uint8Array(bytes) : (bytes as Uint8Array<ArrayBuffer>);
    return hexadecimal(new Uint8Array(await subtle.digest("SHA-256", input)));
}

/**
 * Return the SHA-256 of bytes with 64 characters "0" in the place of the 64 bytes from `offset` on. So a file can hold
 * its own hash.
 */
export async function sha256WithZeroedDigits(bytes: Uint8Array, offset: number): Promise<string> {
    const copy = new Uint8Array(bytes);
    copy.set(asciiBytes(zeros), offset);
    return sha256(copy);
}

/** Return the position of an ASCII text in bytes, or -1. */
export function findText(bytes: Uint8Array, text: string): number {
    const wanted = asciiBytes(text);
    for (let start = bytes.indexOf(wanted[0]!); start >= 0; start = bytes.indexOf(wanted[0]!, start + 1)) {
        if (wanted.every((byte, i) => bytes[start + i] === byte)) return start;
    }
    return -1;
}

/** Return the SHA-256 of bytes, computed without crypto.subtle. */
export function sha256InScript(bytes: Uint8Array): string {
    const state = fractions(firstPrimes(8), Math.sqrt);
    const schedule = new Int32Array(64);
    const whole = bytes.length - (bytes.length % 64);
    for (let start = 0; start < whole; start += 64) addBlock(state, schedule, bytes, start);
    // The rest, the bit 1, zeros, and the length in bits as a 64-bit number.
    const rest = bytes.length - whole;
    const end = new Uint8Array(rest < 56 ? 64 : 128);
    end.set(bytes.subarray(whole));
    end[rest] = 0x80;
    const view = new DataView(end.buffer);
    view.setUint32(end.length - 8, Math.floor(bytes.length / 2 ** 29));
    view.setUint32(end.length - 4, (bytes.length * 8) % 2 ** 32);
    for (let start = 0; start < end.length; start += 64) addBlock(state, schedule, end, start);
    const digest = new DataView(new ArrayBuffer(32));
    state.forEach((word, i) => {
        digest.setInt32(4 * i, word);
    });
    return hexadecimal(new Uint8Array(digest.buffer));
}

function addBlock(state: Int32Array, schedule: Int32Array, bytes: Uint8Array, start: number): void {
    for (let i = 0; i < 16; i++) {
        const at = start + 4 * i;
        schedule[i] = (bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!;
    }
    for (let i = 16; i < 64; i++) {
        const x = schedule[i - 15]!;
        const y = schedule[i - 2]!;
        const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        schedule[i] = schedule[i - 16]! + s0 + schedule[i - 7]! + s1;
    }
    let a = state[0]!;
    let b = state[1]!;
    let c = state[2]!;
    let d = state[3]!;
    let e = state[4]!;
    let f = state[5]!;
    let g = state[6]!;
    let h = state[7]!;
    for (let i = 0; i < 64; i++) {
        const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const first = (h + s1 + ((e & f) ^ (~e & g)) + constants[i]! + schedule[i]!) | 0;
        const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const second = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        h = g;
        g = f;
        f = e;
        e = (d + first) | 0;
        d = c;
        c = b;
        b = a;
        a = (first + second) | 0;
    }
    state[0]! += a;
    state[1]! += b;
    state[2]! += c;
    state[3]! += d;
    state[4]! += e;
    state[5]! += f;
    state[6]! += g;
    state[7]! += h;
}

function makeConstants(): Int32Array {
    return fractions(firstPrimes(64), Math.cbrt);
}

function firstPrimes(count: number): number[] {
    const primes: number[] = [];
    for (let number = 2; primes.length < count; number++) {
        if (primes.every((prime) => number % prime !== 0)) primes.push(number);
    }
    return primes;
}

/** Return the first 32 bits of the fraction of root(n) for each n. */
function fractions(numbers: readonly number[], root: (n: number) => number): Int32Array {
    return Int32Array.from(numbers, (n) => Math.floor((root(n) % 1) * 2 ** 32));
}

function asciiBytes(text: string): Uint8Array {
    return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

function hexadecimal(bytes: Uint8Array): string {
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
