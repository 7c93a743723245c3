import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import type { RecordReader, Source } from "../../../src/source.js";
import { httpBundle, type HttpBundleOptions } from "../../../src/sources/http-bundle.js";
import { BundleServer } from "../support/bundle-server.js";
import { FakeOpfs } from "../support/fake-opfs.js";
import { testTable } from "../support/tables.js";

const stride = 256;
const { table, files, record } = testTable({ stride, counts: [200], dataOffset: 4096 });
const all = [...Array(200).keys()];

let server: BundleServer;
let url: string;
let opfs: FakeOpfs;
let sources: Source[] = [];

beforeEach(async () => {
    server = new BundleServer(new Map(files));
    url = await server.start();
    opfs = new FakeOpfs();
    vi.stubGlobal("navigator", opfs.navigator());
});

afterEach(async () => {
    for (const source of sources) await source.close();
    sources = [];
    await server.stop();
    vi.unstubAllGlobals();
});

async function open(options: HttpBundleOptions = {}): Promise<{ source: Source; reader: RecordReader }> {
    const source = httpBundle(url, options);
    sources.push(source);
    return { source, reader: await source.openTable(table) };
}

/** Read rows, check the records, and return how many came from the cache. */
async function cached(opened: { source: Source; reader: RecordReader }, rows: readonly number[]): Promise<number> {
    const before = opened.source.stats.cachedRecords;
    expect(await opened.reader.read(rows)).toEqual(rows.map(record));
    return opened.source.stats.cachedRecords - before;
}

const slots = (): Uint8Array => opfs.files().get(`table-${table.id}.slots`)!;
const index = (): Uint8Array => opfs.files().get(`table-${table.id}.index`)!;

test("records are kept for the next visit", async () => {
    const first = await open();
    expect(await cached(first, all.slice(0, 50))).toBe(0);
    expect(await cached(first, all.slice(0, 50))).toBe(50);
    await first.source.close();
    expect(slots()).toHaveLength(50 * stride);
    const second = await open();
    expect(await cached(second, all.slice(0, 50))).toBe(50);
    expect(second.source.stats).toMatchObject({ cache: "opfs", cacheReason: "", networkRequests: 0 });
});

test("a full cache reuses the slots of the records that were not used for the longest time", async () => {
    const options = { cacheBytes: 100 * stride };
    const first = await open(options);
    await cached(first, all.slice(0, 100));
    expect(await cached(first, all.slice(0, 10))).toBe(10);
    await cached(first, all.slice(100, 150));
    expect(await cached(first, all.slice(0, 10))).toBe(10);
    await first.source.close();
    expect(slots()).toHaveLength(100 * stride);
    const second = await open(options);
    expect(await cached(second, [...all.slice(0, 10), ...all.slice(60, 150)])).toBe(100);
    await second.source.close();
    const smaller = await open({ cacheBytes: 20 * stride });
    expect(slots()).toHaveLength(20 * stride);
    await cached(smaller, all);
    await smaller.source.close();
    expect(slots()).toHaveLength(20 * stride);
});

test("the next visit gives up the records that were not used for the longest time in any visit", async () => {
    const options = { cacheBytes: 100 * stride };
    const visit = async (...reads: readonly (readonly number[])[]): Promise<number[]> => {
        const opened = await open(options);
        const counts: number[] = [];
        for (const rows of reads) counts.push(await cached(opened, rows));
        await opened.source.close();
        return counts;
    };
    await visit(all.slice(0, 100));
    expect(await visit(all.slice(0, 40))).toEqual([40]);
    expect(await visit(all.slice(30, 35))).toEqual([5]);
    expect(await visit(all.slice(100, 160))).toEqual([0]); // instead of 40 to 99
    expect(await visit(all.slice(0, 40), all.slice(100, 160))).toEqual([40, 60]);
    expect(await visit(all.slice(160, 195))).toEqual([0]); // instead of 0 to 34
    expect(await visit(all.slice(35, 40), all.slice(160, 195), all.slice(30, 35))).toEqual([5, 35, 0]);
});

test("a crash loses at most the last records", async () => {
    const first = await open();
    for (const row of all.filter((one) => one % 2 === 0)) await cached(first, [row]);
    opfs.crash();
    const second = await open();
    const kept = await cached(second, all);
    expect(kept).toBeGreaterThanOrEqual(96);
    expect(second.source.stats.cache).toBe("opfs");
    await second.source.close();
    expect(await cached(await open(), all)).toBe(200);
});

test("a tab that ends after a pause loses no records", async () => {
    await cached(await open(), all.slice(0, 5));
    await new Promise((resolve) => setTimeout(resolve, 700));
    opfs.crash();
    expect(await cached(await open(), all.slice(0, 5))).toBe(5);
});

test("a crash between a record and its entry does no harm", async () => {
    const options = { cacheBytes: 40 * stride };
    const first = await open(options);
    await cached(first, all.slice(0, 40));
    await first.source.close();
    const before = index().slice();
    const second = await open(options);
    await cached(second, all.slice(100, 140));
    await second.source.close();
    // The slots hold other rows than the index says.
    opfs.damage(`table-${table.id}.index`, () => before);
    const third = await open(options);
    expect(await cached(third, all.slice(0, 40))).toBe(0);
    await third.source.close();
    expect(await cached(await open(options), all.slice(0, 40))).toBe(40);
});

describe("damage", () => {
    const damages: [string, "slots" | "index", (bytes: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer>, number][] =
        [
            ["a changed record", "slots", (bytes) => bytes.fill(1, 300, 301), 49],
            ["lost slots", "slots", (bytes) => bytes.slice(0, 30 * stride + 5), 30],
            ["no slots", "slots", () => new Uint8Array(0), 0],
            ["a changed entry", "index", (bytes) => bytes.fill(255, 16 + 12 * 20, 16 + 12 * 20 + 4), 20],
            ["half an entry", "index", (bytes) => bytes.slice(0, -5), 49],
            ["a changed header", "index", (bytes) => bytes.fill(0, 0, 1), 0],
            ["another stride", "index", (bytes) => bytes.fill(7, 8, 9), 0],
            ["no index", "index", () => new Uint8Array(0), 0],
            ["a random index", "index", (bytes) => bytes.map((_, i) => (i * 77) & 255), 0],
            // An entry with a right CRC-32 (of 8 bytes 255) that names a row and slot that do not exist.
            [
                "foreign entries",
                "index",
                (bytes) => appended(bytes, [...Array<number>(8).fill(255), 0x1c, 0xdf, 0x44, 0x21]),
                50,
            ],
        ];
    test.each(damages)("%s is repaired", async (_, name, damage, kept) => {
        const first = await open();
        await cached(first, all.slice(0, 50));
        await first.source.close();
        opfs.damage(`table-${table.id}.${name}`, damage);
        const second = await open();
        expect(await cached(second, all.slice(0, 50))).toBe(kept);
        expect(await cached(second, all.slice(0, 50))).toBe(50);
        await second.source.close();
        expect(await cached(await open(), all.slice(0, 50))).toBe(50);
    });

    function appended(bytes: Uint8Array, more: readonly number[]): Uint8Array<ArrayBuffer> {
        return Uint8Array.from([...bytes, ...more]);
    }
});

test("without space the cache goes on with what it has", async () => {
    opfs.quota = 60 * stride;
    const first = await open();
    await cached(first, all);
    expect(first.source.stats.cache).toBe("opfs");
    expect(first.source.stats.cacheReason).toMatch(/new records are not kept \(.*no space is left/);
    expect(await cached(first, all)).toBeGreaterThan(30);
    await first.source.close();
    opfs.quota = Infinity;
    const second = await open();
    await cached(second, all);
    expect(second.source.stats.cacheReason).toBe("");
    await second.source.close();
    expect(await cached(await open(), all)).toBe(200);
});

test("a long log is shortened at the next visit", async () => {
    const options = { cacheBytes: 40 * stride };
    const first = await open(options);
    for (let round = 0; round < 7; round++) await cached(first, all);
    await first.source.close();
    expect(index().length).toBeGreaterThan(16 + 12 * 1104);
    const second = await open(options);
    expect(index()).toHaveLength(16 + 12 * 40);
    expect(await cached(second, all.slice(160))).toBe(40);
});

describe("without OPFS records are in memory, with a reason", () => {
    async function expectMemory(reason: string): Promise<void> {
        const opened = await open();
        await cached(opened, [1, 2]);
        expect(await cached(opened, [1, 2])).toBe(2);
        expect(opened.source.stats.cache).toBe("memory");
        expect(opened.source.stats.cacheReason).toContain(reason);
    }

    test("Node", async () => {
        vi.stubGlobal("navigator", undefined);
        await expectMemory("this platform has no OPFS");
    });

    test("an insecure context", async () => {
        vi.stubGlobal("navigator", {});
        vi.stubGlobal("isSecureContext", false);
        await expectMemory("secure context");
    });

    test("a private window", async () => {
        opfs.refusal = new DOMException("not here", "SecurityError");
        await expectMemory("SecurityError: not here");
    });

    test("a window thread", async () => {
        opfs.worker = false;
        await expectMemory("only in a worker");
    });

    test("an open handle of somebody else", async () => {
        const first = await open();
        await cached(first, [1]);
        vi.stubGlobal("navigator", {
            ...(opfs.navigator() as object),
            locks: { request: (_: string, __: object, use: (lock: object) => Promise<void>) => use({}) },
        });
        await expectMemory("records are not kept (NoModificationAllowedError");
    });

    test("a second tab, until the first one closes or crashes", async () => {
        const first = await open();
        await cached(first, all);
        await expectMemory("another tab or worker");
        await first.source.close();
        const third = await open();
        expect(await cached(third, all)).toBe(200);
        opfs.crash();
        expect(await cached(await open(), all)).toBe(200);
    });
});

test("two bundles have two caches; the query of an address does not matter", async () => {
    const first = await open();
    await cached(first, [1]);
    const other = httpBundle(url.replace("127.0.0.1", "localhost"), {
        fetch: (address, init) => fetch(address.replace("localhost", "127.0.0.1"), init),
    });
    sources.push(other);
    const opened = { source: other, reader: await other.openTable(table) };
    expect(await cached(opened, [1])).toBe(0);
    expect(other.stats.cache).toBe("opfs");
    await first.source.close();
    const signed = httpBundle(`${url}/?signature=1`, {
        fetch: (address, init) => fetch(address.replace("?signature=1", ""), init),
    });
    sources.push(signed);
    expect(await cached({ source: signed, reader: await signed.openTable(table) }, [1])).toBe(1);
});

test("a closed source opens again", async () => {
    const first = await open();
    await cached(first, all);
    await first.source.close();
    const again = { source: first.source, reader: await first.source.openTable(table) };
    expect(await cached(again, all)).toBe(200);
    expect(first.source.stats).toMatchObject({ cache: "opfs", cacheReason: "" });
});
