import { expect, test } from "vitest";

import { Origins } from "../../../page/origins.js";
import { TablePicture } from "../../../page/picture.js";
import type { ModelStats } from "../../../src/options.js";
import { FakeModel } from "../support/fake-model.js";

test.each([
    [4096, 2, 2048, 64, 32],
    [50_304, 25, 2013, 64, 32],
    [100, 1, 100, 64, 2],
    [3, 1, 3, 3, 1],
])("a table of %d rows has squares of %d rows", (rows, rowsOfSquare, squares, columns, lines) => {
    expect(new TablePicture(rows)).toMatchObject({ rows, rowsOfSquare, squares, columns, lines });
});

test("a square glows, and keeps the colour of its last use", () => {
    const picture = new TablePicture(4096);
    picture.light({ network: [10, 11, 4095, 4096], cache: [200], memory: [] }, 1000);
    picture.light({ network: [], cache: [], memory: [10] }, 1750);
    expect([...picture.lit(1750)].sort((a, b) => a.index - b.index)).toEqual([
        { index: 5, origin: "memory", glow: 1 },
        { index: 100, origin: "cache", glow: 0.5 },
        { index: 2047, origin: "network", glow: 0.5 },
    ]);
    expect([picture.glows(3249), picture.glows(3250)]).toEqual([true, false]);
    expect(picture.text(4)).toBe(
        "The table has 4,096 rows. 4 of them (under 0.1 %) were used. " +
            "Uses: 3 from the network, 1 from the cache, 1 from memory.",
    );
});

test("rows are divided as the counters say", () => {
    const model = new FakeModel();
    const origins = new Origins();
    const before = model.stats;
    model.read([4, 7, 9, 7]);
    expect(origins.divide([4, 7, 9, 7], before, model.stats)).toEqual({ memory: [], cache: [4], network: [7, 9] });
    const then = model.stats;
    model.read([7, 2]);
    expect(origins.divide([7, 2], then, model.stats)).toEqual({ memory: [7], cache: [2], network: [] });
    expect(origins.used).toEqual(new Set([4, 7, 9, 2]));
});

test("records that are fetched ahead in the meantime do not change the origin of a row", () => {
    const { stats } = new FakeModel();
    const after = (network: number, cached: number): ModelStats => ({
        ...stats,
        source: { ...stats.source, networkRecords: network, cachedRecords: cached },
    });
    expect(new Origins().divide([5], stats, after(256, 1))).toEqual({ memory: [], cache: [5], network: [] });
    expect(new Origins().divide([5], stats, after(257, 0))).toEqual({ memory: [], cache: [], network: [5] });
});
