/** Numbers as texts, as Python reads and writes them, and exact decimal rounding. */

import { isSpace, strip } from "./characters.js";
import { fail, unsupported } from "./failures.js";
import { MAX_DIGITS } from "./limits.js";

/** Return an int as a text. */
export function integerText(value: bigint): string {
    const text = value.toString();
    return text.length > MAX_DIGITS + 1 ? fail(`an integer has more than ${MAX_DIGITS} digits`) : text;
}

/** Return a float as Python's `repr` writes it: the shortest text with the same value. */
export function floatText(value: number): string {
    if (!Number.isFinite(value)) {
        return nonFinite(value);
    }
    const sign = value < 0 || Object.is(value, -0) ? "-" : "";
    const [mantissa, power] = Math.abs(value).toExponential().split("e");
    const digits = mantissa!.replace(".", "");
    const exponent = Number(power);
    if (exponent < -4 || exponent >= 16) {
        const fraction = digits.length > 1 ? `.${digits.slice(1)}` : "";
        return `${sign}${digits[0]!}${fraction}e${exponentDigits(exponent)}`;
    }
    if (exponent < 0) {
        return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
    }
    const padded = digits.padEnd(exponent + 2, "0");
    return `${sign}${padded.slice(0, exponent + 1)}.${padded.slice(exponent + 1)}`;
}

export function nonFinite(value: number): string {
    return Number.isNaN(value) ? "nan" : value < 0 ? "-inf" : "inf";
}

function exponentDigits(exponent: number): string {
    return `${exponent < 0 ? "-" : "+"}${Math.abs(exponent).toString().padStart(2, "0")}`;
}

/** Return a finite number as a fraction of integers. */
function asFraction(value: number): [bigint, bigint] {
    let exponent = 0;
    let mantissa = value;
    while (!Number.isInteger(mantissa)) {
        mantissa *= 2;
        exponent += 1;
    }
    return [BigInt(mantissa), 1n << BigInt(exponent)];
}

/** Return `numerator / denominator`, rounded to the nearest integer, ties to even. Both are positive or 0. */
function roundedQuotient(numerator: bigint, denominator: bigint): bigint {
    const quotient = numerator / denominator;
    const twice = 2n * (numerator % denominator);
    return twice > denominator || (twice === denominator && quotient % 2n === 1n) ? quotient + 1n : quotient;
}

/** Return `|value| * 10 ** digits`, rounded to an integer, ties to even. */
function scaled(value: number, digits: number): bigint {
    const [numerator, denominator] = asFraction(Math.abs(value));
    const power = 10n ** BigInt(Math.abs(digits));
    return digits >= 0
        ? roundedQuotient(numerator * power, denominator)
        : roundedQuotient(numerator, denominator * power);
}

/** Return a finite number with a number of digits after the point (`%.2f`), without its sign. */
export function fixedText(value: number, digits: number): string {
    const text = scaled(value, digits)
        .toString()
        .padStart(digits + 1, "0");
    return digits === 0 ? text : `${text.slice(0, -digits)}.${text.slice(-digits)}`;
}

/** Return `digits + 1` digits of a finite number, and the power of ten of the first one. */
function exponentForm(value: number, digits: number): { text: string; exponent: number } {
    if (value === 0) {
        return { text: "0".repeat(digits + 1), exponent: 0 };
    }
    let exponent = Number(Math.abs(value).toExponential().split("e")[1]) + 1;
    let text: string;
    do {
        exponent -= 1;
        text = scaled(value, digits - exponent).toString();
    } while (text.length < digits + 1);
    // Rounding made one digit more, such as 9.99 -> 10.0.
    return text.length > digits + 1 ? { text: text.slice(0, -1), exponent: exponent + 1 } : { text, exponent };
}

/** Return a finite number with an exponent (`%.2e`), without its sign. */
export function exponentText(value: number, digits: number): string {
    const { text, exponent } = exponentForm(value, digits);
    return `${text[0]!}${digits === 0 ? "" : "."}${text.slice(1)}e${exponentDigits(exponent)}`;
}

/** Return a finite number with a number of significant digits (`%.3g`), without its sign. */
export function generalText(value: number, precision: number): string {
    const digits = Math.max(precision, 1);
    const { exponent } = exponentForm(value, digits - 1);
    const small = exponent >= -4 && exponent < digits;
    const text = small ? fixedText(value, digits - 1 - exponent) : exponentText(value, digits - 1);
    const [mantissa, power] = text.split("e");
    const short = mantissa!.includes(".") ? mantissa!.replace(/\.?0+$/, "") : mantissa!;
    return power === undefined ? short : `${short}e${power}`;
}

/** Return a number rounded to `digits` digits after the point, ties to even, as Python's `round` does. */
export function roundFloat(value: number, digits: number): number {
    if (!Number.isFinite(value) || value === 0 || digits > 340) {
        return value;
    }
    const sign = value < 0 ? "-" : "";
    return Number(`${sign}${scaled(value, digits)}e${-digits}`);
}

/** Return an int rounded to a multiple of `10 ** -digits`, ties to even. */
export function roundInteger(value: bigint, digits: number): bigint {
    if (digits >= 0) {
        return value;
    }
    const power = 10n ** BigInt(-digits);
    const rounded = roundedQuotient(value < 0n ? -value : value, power) * power;
    return value < 0n ? -rounded : rounded;
}

/**
 * Return `base ** exponent` as a float.
 *
 * @throws TemplateFailure The exponent is neither an integer nor 0.5, so the last bit of the result is not defined.
 */
export function floatPower(base: number, exponent: number): number {
    if (exponent === 0.5 && base >= 0) {
        return Math.sqrt(base);
    }
    if (!Number.isInteger(exponent) || Math.abs(exponent) > 1023 || !Number.isFinite(base)) {
        return unsupported(`the power ${base} ** ${exponent}`);
    }
    if (base === 0 && exponent < 0) {
        fail("0.0 cannot be raised to a negative power");
    }
    const [numerator, denominator] = asFraction(Math.abs(base));
    const times = BigInt(Math.abs(exponent));
    const [top, bottom] = exponent < 0 ? [denominator, numerator] : [numerator, denominator];
    const result = quotient(top ** times, bottom ** times);
    return base < 0 && exponent % 2 !== 0 ? -result : result;
}

/** Return `numerator / denominator` as the nearest float. Both are not negative. */
export function quotient(numerator: bigint, denominator: bigint): number {
    // 64 bits of the quotient and a bit for the rest are enough to round once, unless the result is subnormal.
    const shift = Math.max(0, bitLength(denominator) - bitLength(numerator) + 64);
    const scaledTop = numerator << BigInt(shift);
    let bits = scaledTop / denominator;
    bits = (bits << 1n) | (scaledTop % denominator === 0n ? 0n : 1n);
    const result = Number(bits) / 2 ** Math.min(shift + 1, 1000) / 2 ** Math.max(shift + 1 - 1000, 0);
    if (!Number.isFinite(result)) {
        fail("a number is too large to be a float");
    }
    return result < 1e-290 && result > 0 ? unsupported(`the number ${result}`) : result;
}

export function bitLength(value: bigint): number {
    const text = (value < 0n ? -value : value).toString(16);
    return text === "0" ? 0 : 4 * text.length - Math.clz32(parseInt(text[0]!, 16)) + 28;
}

/** Return an int as the nearest float. */
export function toFloat(value: bigint | number): number {
    const float = Number(value);
    return typeof value === "bigint" && !Number.isFinite(float) ? fail("int too large to convert to float") : float;
}

/** Return the int that a text is, as Python's `int(text, base)` reads it; undefined if it is none. */
export function parseInteger(text: string, base: number): bigint | undefined {
    const match = /^([+-]?)(0[xob]_?)?([\da-z]+(?:_[\da-z]+)*)$/i.exec(strip(text, isSpace, true, true));
    if (match === null) {
        return /\p{Nd}/u.test(text.replace(/[\0-\x7f]/g, "")) ? unsupported("a number of other digits") : undefined;
    }
    let digits = match[3]!.replaceAll("_", "");
    const named = { "0x": 16, "0o": 8, "0b": 2 }[(match[2] ?? "").slice(0, 2).toLowerCase()];
    let used = base;
    if (named !== undefined && (base === 0 || base === named)) {
        used = named;
    } else {
        digits = (match[2] ?? "").replace("_", "") + digits;
        if (base === 0) {
            used = 10;
            if (/^0+[^0]/.test(digits)) {
                return undefined;
            }
        }
    }
    if (digits.length > MAX_DIGITS && (used & (used - 1)) !== 0) {
        return undefined;
    }
    let result = 0n;
    if (/^\d+$/.test(digits) && used === 10) {
        result = BigInt(digits);
    } else {
        for (const digit of digits) {
            const value = parseInt(digit, 36);
            if (value >= used) {
                return undefined;
            }
            result = result * BigInt(used) + BigInt(value);
        }
    }
    return match[1] === "-" ? -result : result;
}

/** Return the float that a text is, as Python's `float(text)` reads it; undefined if it is none. */
export function parseFloatText(text: string): number | undefined {
    const stripped = strip(text, isSpace, true, true);
    const special = /^([+-]?)(inf|infinity|nan)$/i.exec(stripped);
    if (special !== null) {
        const value = special[2]!.toLowerCase() === "nan" ? NaN : Infinity;
        return special[1] === "-" ? -value : value;
    }
    if (/^[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:e[+-]?\d+(?:_\d+)*)?$/i.test(stripped)) {
        return Number(stripped.replaceAll("_", ""));
    }
    return /\p{Nd}/u.test(text.replace(/[\0-\x7f]/g, "")) ? unsupported("a number of other digits") : undefined;
}
