import { expect, test } from "vitest";

import type { LayerSlots } from "../../../src/backend.js";
import { HostKvCache } from "../../../src/backends/host-cache.js";

/** Layer 1 has no cache. */
const FILES = {
    caches: [
        { layer: 0, heads: 2, headDim: 2 },
        { layer: 2, heads: 1, headDim: 4 },
    ],
    kvDtype: "float32",
} as const;

/** Return numbers that name their part (layer and kind), head, slot and place. */
function slots(first: number, count: number): LayerSlots[] {
    const part = (name: number, heads: number, size: number): Float32Array =>
        Float32Array.from({ length: heads * count * size }, (_, i) => {
            const head = Math.floor(i / (count * size));
            const slot = first + (Math.floor(i / size) % count);
            return 1000 * name + 100 * head + 10 * slot + (i % size);
        });
    return FILES.caches.map(({ heads, headDim }, index) => {
        return { key: part(2 * index + 1, heads, headDim), value: part(2 * index + 2, heads, headDim) };
    });
}

test("caches of different shapes are the inputs of their layers", async () => {
    const cache = new HostKvCache(FILES, 2, 3);
    await cache.write(1, 1, slots(1, 2));
    const tensors = cache.tensors(undefined);
    expect(Object.entries(tensors).map(([name, { dims }]) => [name, dims])).toEqual([
        ["past_key_values.0.key", [2, 2, 3, 2]],
        ["past_key_values.0.value", [2, 2, 3, 2]],
        ["past_key_values.2.key", [2, 1, 3, 4]],
        ["past_key_values.2.value", [2, 1, 3, 4]],
    ]);
    const row = cache.tensors(1);
    expect(row["past_key_values.0.value"]!.dims).toEqual([1, 2, 3, 2]);
    const value = [0, 0, 2010, 2011, 2020, 2021, 0, 0, 2110, 2111, 2120, 2121];
    expect([...(row["past_key_values.0.value"]!.data as Float32Array)]).toEqual(value);
    const key = [0, 0, 0, 0, 3010, 3011, 3012, 3013, 3020, 3021, 3022, 3023];
    expect([...(row["past_key_values.2.key"]!.data as Float32Array)]).toEqual(key);
});

test("caches of different shapes grow, and are copied and read", async () => {
    const cache = new HostKvCache(FILES, 2, 3);
    await cache.write(1, 0, slots(0, 3));
    await cache.grow(5);
    expect(await cache.read(1, 3)).toEqual(slots(0, 3));
    const other = new HostKvCache(FILES, 3, 4);
    await other.copy(2, cache, 1, 2);
    expect(await other.read(2, 2)).toEqual(slots(0, 2));
    expect((await other.read(2, 3))[1]!.key.subarray(8)).toEqual(new Float32Array(4));
    expect((await other.read(1, 1))[1]!.key).toEqual(new Float32Array(4));
});

test("new slots of a graph go to their part", async () => {
    const cache = new HostKvCache(FILES, 2, 4);
    const [first, second] = slots(0, 4);
    await cache.write(0, 0, [first!, second!]);
    // [B, heads, K, size] = [2, 1, 3, 4]; the slots 1 and 2 of sequence 1 are at the places 1 and 2.
    const data = Float32Array.from({ length: 24 }, (_, i) => i);
    cache.store(3, 1, { data, count: 3, row: 1, index: 1 }, { first: 1, length: 2 });
    const [zeros, stored] = await cache.read(1, 4);
    expect([...stored!.value]).toEqual([0, 0, 0, 0, 16, 17, 18, 19, 20, 21, 22, 23, 0, 0, 0, 0]);
    expect(stored!.key).toEqual(new Float32Array(16));
    expect(zeros!.key).toEqual(new Float32Array(16));
    expect(await cache.read(0, 4)).toEqual([first, second]);
});
