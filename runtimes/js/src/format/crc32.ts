/** The CRC-32 of zlib and PNG, which protects records. */

const polynomial = 0xedb88320;

/**
 * tables[k][byte] is the CRC of a byte that k further bytes follow. So the CRCs of eight bytes are looked up
 * independently of each other and combined.
 */
const tables: readonly Int32Array[] = makeTables();

function makeTables(): Int32Array[] {
    const first = new Int32Array(256);
    for (let byte = 0; byte < 256; byte++) {
        let value = byte;
        for (let bit = 0; bit < 8; bit++) value = (value & 1) !== 0 ? (value >>> 1) ^ polynomial : value >>> 1;
        first[byte] = value;
    }
    const made = [first];
    while (made.length < 8) {
        made.push(made.at(-1)!.map((value) => (value >>> 8) ^ first[value & 0xff]!));
    }
    return made;
}

/** Continue the CRC-32 `value` (0 at first) with bytes. Return an integer from 0 to 2^32 - 1. */
export function crc32(bytes: Uint8Array, value = 0): number {
    const [t0, t1, t2, t3, t4, t5, t6, t7] = tables as [
        Int32Array,
        Int32Array,
        Int32Array,
        Int32Array,
        Int32Array,
        Int32Array,
        Int32Array,
        Int32Array,
    ];
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const eights = bytes.length - (bytes.length % 8);
    let crc = ~value;
    let i = 0;
    for (; i < eights; i += 8) {
        const low = view.getInt32(i, true) ^ crc;
        const high = view.getInt32(i + 4, true);
        crc =
            t7[low & 0xff]! ^
            t6[(low >>> 8) & 0xff]! ^
            t5[(low >>> 16) & 0xff]! ^
            t4[low >>> 24]! ^
            t3[high & 0xff]! ^
            t2[(high >>> 8) & 0xff]! ^
            t1[(high >>> 16) & 0xff]! ^
            t0[high >>> 24]!;
    }
    for (; i < bytes.length; i++) crc = (crc >>> 8) ^ t0[(crc ^ bytes[i]!) & 0xff]!;
    return ~crc >>> 0;
}
