import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { BundleError, RequestError } from "../../../src/errors.js";
import type { Source } from "../../../src/source.js";
import { httpBundle, type HttpBundleOptions } from "../../../src/sources/http-bundle.js";
import { nodeSourceFrom } from "../../../src/sources/node-sources.js";
import { webSourceFrom } from "../../../src/sources/web-sources.js";
import { BundleServer, type Fault } from "../support/bundle-server.js";
import { testTable } from "../support/tables.js";

const made = testTable({ stride: 4096, counts: [40, 24], dataOffset: 4096 });
const { table, record } = made;

let server: BundleServer;
let url: string;
let sources: Source[] = [];

beforeEach(async () => {
    server = new BundleServer(new Map(made.files));
    url = await server.start();
});

afterEach(async () => {
    for (const source of sources) await source.close();
    sources = [];
    await server.stop();
});

function open(options: HttpBundleOptions = {}): Source {
    const source = httpBundle(url, { cache: "memory", ...options });
    sources.push(source);
    return source;
}

async function failure(promise: Promise<unknown>): Promise<string> {
    const error: unknown = await promise.then(
        () => undefined,
        (found: unknown) => found,
    );
    expect(error).toBeInstanceOf(BundleError);
    expect((error as Error).message).not.toContain("\n");
    return (error as Error).message;
}

const ranges = (): string[] => server.take().map((request) => `${request.name.slice(8, 9)} ${request.range ?? ""}`);
const bytes = (first: number, count: number): string => `${4096 + first * 4096}-${4096 + (first + count) * 4096 - 1}`;

test("records come in the order of the rows; near rows share a request", async () => {
    const source = open();
    const reader = await source.openTable(table);
    const rows = [63, 0, 1, 39, 40, 4, 20];
    expect(await reader.read(rows)).toEqual(rows.map(record));
    // Rows 1 and 4 are 8 KiB apart. Rows 39 and 40 are in two files.
    const expected = [
        `0 bytes=${bytes(0, 5)}`,
        `0 bytes=${bytes(20, 1)}`,
        `0 bytes=${bytes(39, 1)}`,
        `1 bytes=${bytes(0, 1)}`,
        `1 bytes=${bytes(23, 1)}`,
    ];
    expect(ranges().sort()).toEqual(expected.sort());
    expect(source.stats).toMatchObject({ networkRequests: 5, networkRecords: 9, cachedRecords: 0, cache: "memory" });
    expect(source.stats.networkBytes).toBe(9 * 4096);
    expect(await reader.read([2, 0])).toEqual([2, 0].map(record));
    expect(source.stats).toMatchObject({ networkRequests: 5, cachedRecords: 2, cacheReason: "" });
});

test("the memory cache gives up the records that were not used for the longest time", async () => {
    const source = open({ cacheBytes: 3 * 4096 });
    const reader = await source.openTable(table);
    for (const row of [0, 10, 20, 0, 30]) await reader.read([row]);
    ranges();
    await reader.read([0]);
    await reader.read([20]);
    await reader.read([30]);
    expect(ranges()).toEqual([]);
    await reader.read([10]);
    expect(ranges()).toHaveLength(1);
});

test("at most `concurrency` requests run at once", async () => {
    server.fault = () => ({ delay: 30 });
    const reader = await open({ concurrency: 3 }).openTable(table);
    const rows = [0, 6, 12, 18, 24, 30, 36];
    expect(await reader.read(rows)).toEqual(rows.map(record));
    expect(server.mostRunning).toBe(3);
});

describe("faults of a range request", () => {
    const cases: [string, Fault, RegExp, number][] = [
        ["Range is ignored", { ignoreRange: true }, /ignores the header Range.*status 200/, 1],
        [
            "the file is compressed",
            { gzip: true, ignoreRange: true },
            /compresses the file \(Content-Encoding gzip\)/,
            1,
        ],
        ["the range is compressed", { gzip: true }, /experts-0.*compresses the file.*turn compression off/, 1],
        ["404", { status: 404 }, /experts-0.*no such file \(status 404\)/, 1],
        ["403", { status: 403 }, /status 403/, 1],
        ["416", { status: 416 }, /status 416.*another version/, 1],
        ["500", { status: 500 }, /experts-0.*3 attempts \(status 500\)/, 3],
        ["a cut connection", { cutAfter: 100 }, /experts-0.*3 attempts/, 3],
        ["another size", { total: 77 }, /has 77 bytes on the server, expected 167936/, 1],
        ["wrong bytes", { wrongBytes: true }, /record 7 \(token id 7\).*second attempt.*another version/, 2],
    ];
    test.each(cases)("%s", async (_, fault, message, requests) => {
        const source = open();
        const reader = await source.openTable(table);
        server.fault = () => fault;
        expect(await failure(reader.read([7]))).toMatch(message);
        expect(server.take()).toHaveLength(requests);
        server.fault = () => undefined;
        expect(await reader.read([7])).toEqual([record(7)]);
    });

    test.each([
        ["a cut connection", { cutAfter: 100 }],
        ["status 503", { status: 503 }],
        ["wrong bytes", { wrongBytes: true }],
    ])("%s once is repaired", async (_, fault: Fault) => {
        server.fault = (_request, count) => (count === 1 ? fault : undefined);
        const reader = await open().openTable(table);
        expect(await reader.read([7])).toEqual([record(7)]);
        expect(server.take()).toHaveLength(2);
    });

    test("an ETag that changed once is repaired; one that stays changed is an error until the next visit", async () => {
        const reader = await open().openTable(table);
        await reader.read([0]);
        server.fault = (_, count) => (count === 2 ? { etag: '"two"' } : undefined);
        expect(await reader.read([10])).toEqual([record(10)]);
        server.fault = () => ({ etag: '"two"' });
        expect(await failure(reader.read([20]))).toMatch(/ETag or Last-Modified changed.*another version/);
        expect(await (await open().openTable(table)).read([20])).toEqual([record(20)]);
    });

    test("a server that is gone is an error that names the address", async () => {
        const reader = await open().openTable(table);
        await server.stop();
        expect(await failure(reader.read([7]))).toContain(`${url}/experts-0.safetensors: cannot be read in 3 attempts`);
    });
});

test("a signal ends a read with its reason, also while it waits", async () => {
    server.fault = () => ({ delay: 300 });
    const reader = await open({ concurrency: 1 }).openTable(table);
    const first = new AbortController();
    const second = new AbortController();
    const reads = [reader.read([0, 20], { signal: first.signal }), reader.read([30], { signal: second.signal })];
    setTimeout(() => {
        second.abort("second");
        first.abort("first");
    }, 50);
    expect(await Promise.allSettled(reads)).toEqual([
        { status: "rejected", reason: "first" },
        { status: "rejected", reason: "second" },
    ]);
    server.fault = () => undefined;
    expect(await reader.read([0])).toEqual([record(0)]);
    await expect(reader.read([0], { signal: AbortSignal.abort("late") })).rejects.toBe("late");
});

describe("prefetch", () => {
    async function until(check: () => boolean): Promise<void> {
        for (let i = 0; i < 200 && !check(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
        expect(check()).toBe(true);
    }

    test("downloads the lowest ids", async () => {
        const source = open({ prefetch: 30 });
        const reader = await source.openTable(table);
        await until(() => source.stats.networkRecords === 30);
        await reader.read([0, 29]);
        expect(source.stats).toMatchObject({ cachedRecords: 2, networkRecords: 30 });
    });

    test("lets reads go first", async () => {
        server.fault = () => ({ delay: 20 });
        const reader = await open({ prefetch: 64, concurrency: 1 }).openTable(table);
        await reader.read([60]);
        await reader.read([61]);
        const order = ranges();
        expect(order.slice(0, 3)).toContain(`1 bytes=${bytes(20, 1)}`);
    });

    test("hides its failures and ends with close()", async () => {
        server.fault = () => ({ status: 404 });
        const source = open({ prefetch: 64 });
        const reader = await source.openTable(table);
        await until(() => server.requests.length === 1);
        server.fault = () => ({ delay: 5000 });
        const slow = open({ prefetch: 64 });
        await slow.openTable(table);
        const begin = Date.now();
        await slow.close();
        expect(Date.now() - begin).toBeLessThan(1000);
        server.fault = () => undefined;
        expect(await reader.read([5])).toEqual([record(5)]);
    });
});

test("a closed reader refuses, a closed source opens again", async () => {
    const source = open();
    const reader = await source.openTable(table);
    server.fault = () => ({ delay: 5000 });
    const pending = reader.read([1]);
    const refused = expect(pending).rejects.toThrow("was closed");
    await new Promise((resolve) => setTimeout(resolve, 20));
    await source.close();
    await refused;
    expect(await failure(reader.read([1]))).toContain("was closed");
    server.fault = () => undefined;
    expect(await (await source.openTable(table)).read([1])).toEqual([record(1)]);
});

test("readRange returns bytes of a file", async () => {
    const { file: name, size } = table.shards[0]!;
    expect(await open().readRange({ name, size }, 4096, 4096)).toEqual(record(0));
});

test("names stay in the folder, and are escaped", async () => {
    server.files.set("a ?#%.txt", Uint8Array.of(1, 2, 3));
    const source = open({ headers: { "X-Key": "secret" } });
    expect(await source.readRange({ name: "a ?#%.txt", size: 3 }, 1, 1)).toEqual(Uint8Array.of(2));
    expect(server.take()[0]!.headers["x-key"]).toBe("secret");
    for (const name of ["..", "a/b", "", "\ud800"]) await failure(source.readRange({ name, size: 3 }, 0, 1));
    expect(server.take()).toEqual([]);
});

test("descriptions make the same source", async () => {
    const source = open({ prefetch: 2 });
    const description = structuredClone(source.description!);
    expect(description).toMatchObject({ kind: "http-bundle", url: `${url}/`, prefetch: 2, cache: "memory" });
    for (const from of [nodeSourceFrom, webSourceFrom]) {
        const again = from(description);
        sources.push(again);
        expect(again.description).toEqual(description);
        expect(await (await again.openTable(table)).read([3])).toEqual([record(3)]);
    }
    expect(nodeSourceFrom({ kind: "node-folder", path: "/x" }).where).toBe("/x");
    expect(() => webSourceFrom({ kind: "node-folder" })).toThrow(RequestError);
    expect(() => nodeSourceFrom({ kind: "file-handles" })).toThrow(RequestError);
    expect(open({ fetch: (address, init) => fetch(address, init) }).description).toBeUndefined();
});

test.each([
    ["ftp://host/x", {}],
    ["not an address", {}],
    ["http://host/", { prefetch: -1 }],
    ["http://host/", { cacheBytes: 0.5 }],
    ["http://host/", { concurrency: 0 }],
    ["http://host/", { headers: { "a b": "c" } }],
])("%s with %j is refused", (address, options) => {
    expect(() => httpBundle(address, options)).toThrow(RequestError);
});
