import { expect, test } from "vitest";

import { HostKvCache } from "../../../src/backends/host-cache.js";
import { MemoryError } from "../../../src/errors.js";
import { GrowingCache, type CacheOptions } from "../../../src/runtime/growing-cache.js";
import { gemma4 } from "../support/gemma4.js";

/** Return options of a Gemma 4 model whose caches have these numbers of a head. */
function options(headDim: number, globalHeadDim: number, kvDtype: "float32" | "int8" = "float32"): CacheOptions {
    const config = gemma4({ head_dim: headDim, global_head_dim: globalHeadDim });
    const graph = {
        createCache: (batchSize: number, slots: number) =>
            new HostKvCache({ caches: config.kvCaches, kvDtype }, batchSize, slots),
    };
    return { bundle: { config, graph: { kvDtype } }, graph, batchSize: 2, maxLength: 3 } as unknown as CacheOptions;
}

test("the last slot of caches of different shapes comes back", async () => {
    const growing = new GrowingCache(options(2, 4));
    const layers = [2, 4, 2].map((size, layer) => {
        const numbers = Float32Array.from({ length: 2 * 3 * size }, (_, i) => 100 * layer + i + 1);
        return { key: numbers, value: numbers.map((number) => -number) };
    });
    await growing.cache.write(1, 0, layers);
    await growing.keepLastSlot(1);
    const noise = [2, 4, 2].map((size) => ({ key: new Float32Array(2 * size), value: new Float32Array(2 * size) }));
    await growing.cache.write(1, 2, noise);
    expect(await growing.cache.read(1, 3)).not.toEqual(layers);
    expect(await growing.read(1, 3)).toEqual(layers);
});

test("the memory is the sum over caches of different shapes", () => {
    // 2 sequences * 3 slots * 2 heads * 2 (keys and values) * (2 * head_dim + global_head_dim) numbers.
    const [headDim, globalHeadDim] = [2 ** 26, 2 ** 26];
    expect(() => new GrowingCache(options(headDim, globalHeadDim))).toThrow(MemoryError);
    expect(() => new GrowingCache(options(headDim, globalHeadDim))).toThrow("2 sequences of 3 tokens need 18,433 MiB");
});
