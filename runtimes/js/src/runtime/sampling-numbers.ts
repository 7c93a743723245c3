/** The functions of docs/bundle-format.md, "Sampling", that every driver computes to the bit: exp64 and Threefry. */

/** Tokens with a smaller y have weight 0. */
export const CUTOFF = -64;

/** POWERS[k] is 2^-k. Each number is half of the one before, so all are exact. */
const POWERS = new Float64Array(94);
for (let k = 0, power = 1; k < POWERS.length; k++, power /= 2) POWERS[k] = power;

/** Return 0x1.ddddddddddddd * 2^-k, where `digits` is 0x1ddddddddddddd. Both operations are exact. */
function hexFloat(digits: number, k: number): number {
    return (digits / 0x10000000000000) * POWERS[k]!;
}

const LOG2_E = hexFloat(0x171547652b82fe, 0);
const LN2_HIGH = hexFloat(0x162e42fee00000, 1);
const LN2_LOW = hexFloat(0x1a39ef35793c76, 33);
const C3 = hexFloat(0x15555555554eb5, 3);
const C4 = hexFloat(0x15555555553b0c, 5);
const C5 = hexFloat(0x111111112d2ae2, 7);
const C6 = hexFloat(0x16c16c179ff28e, 10);
const C7 = hexFloat(0x1a019f7c5fd11e, 13);
const C8 = hexFloat(0x1a019b39c36ee6, 16);
const C9 = hexFloat(0x171f4b150fbc5c, 19);
const C10 = hexFloat(0x128976591b6f1d, 22);
const C11 = hexFloat(0x18abb61a62f2a1, 26);

/** Return the exponential function of y <= 0 as the document defines it: 0 below -64. */
export function exp64(y: number): number {
    if (y < CUTOFF) return 0;
    const n = Math.floor(y * LOG2_E + 0.5);
    const r = y - n * LN2_HIGH - n * LN2_LOW;
    let p = C11 * r + C10;
    p = p * r + C9;
    p = p * r + C8;
    p = p * r + C7;
    p = p * r + C6;
    p = p * r + C5;
    p = p * r + C4;
    p = p * r + C3;
    p = p * r + 0.5;
    p = p * r + 1;
    p = p * r + 1;
    return p * POWERS[-n | 0]!; // an integer index is faster
}

const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24] as const;

/** Return Threefry-2x32 with 20 rounds of a key and a counter: two numbers below 2^32. */
export function threefry(k0: number, k1: number, x0: number, x1: number): [number, number] {
    const keys = [k0, k1, k0 ^ k1 ^ 0x1bd11bda];
    let a = (x0 + k0) | 0;
    let b = (x1 + k1) | 0;
    for (let round = 0; round < 20; round++) {
        a = (a + b) | 0;
        const rotation = ROTATIONS[round % 8]!;
        b = ((b << rotation) | (b >>> (32 - rotation))) ^ a;
        if (round % 4 !== 3) continue;
        const turn = (round + 1) / 4;
        a = (a + keys[turn % 3]!) | 0;
        b = (b + keys[(turn + 1) % 3]! + turn) | 0;
    }
    return [a >>> 0, b >>> 0];
}

/** Return the random number, from 0 to 1 - 2^-53, of a token. `seed` has the lower and upper 32 bits of the seed. */
export function uniform(seed: readonly [number, number], sequence: number, position: number): number {
    const [high, low] = threefry(seed[0], seed[1], sequence, position);
    return ((high >>> 5) * 0x4000000 + (low >>> 6)) / 0x20000000000000;
}
