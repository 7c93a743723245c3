/** Float16 numbers (IEEE 754 binary16), which JavaScript holds as their bits. */

let table: Float32Array | undefined;

/** Return a table with the float32 number of each float16 bit pattern, [65536]. */
export function halfTable(): Float32Array {
    table ??= makeTable();
    return table;
}

function makeTable(): Float32Array {
    const numbers = new Float32Array(65_536);
    for (let bits = 0; bits < 32_768; bits++) {
        const exponent = bits >> 10;
        const fraction = bits & 1023;
        let number: number;
        if (exponent === 0) number = fraction * 2 ** -24;
        else if (exponent < 31) number = (1024 + fraction) * 2 ** (exponent - 25);
        else number = fraction === 0 ? Infinity : NaN;
        numbers[bits] = number;
        numbers[bits + 32_768] = -number;
    }
    return numbers;
}

/** Convert float16 numbers to float32. Write them to `out` from number `offset` on. */
export function halfToFloat(halves: Uint16Array, out: Float32Array, offset = 0): void {
    const numbers = halfTable();
    for (let i = 0; i < halves.length; i++) out[offset + i] = numbers[halves[i]!]!;
}
