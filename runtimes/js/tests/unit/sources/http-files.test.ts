import { createHash } from "node:crypto";

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { BundleError } from "../../../src/errors.js";
import type { Source, WholeFile } from "../../../src/source.js";
import { httpBundle, type HttpBundleOptions } from "../../../src/sources/http-bundle.js";
import { BundleServer, type Fault } from "../support/bundle-server.js";
import { FakeOpfs } from "../support/fake-opfs.js";
import { testTable } from "../support/tables.js";

const { table, files } = testTable();
const content = Uint8Array.from({ length: 300_000 }, (_, i) => (i * i + (i >> 8)) & 255);
const file: WholeFile = {
    name: "model.onnx.data",
    size: content.length,
    sha256: createHash("sha256").update(content).digest("hex"),
};
const manifest = new TextEncoder().encode(`{"table": "${table.id}", "file": "${file.sha256}"}`);

let server: BundleServer;
let url: string;
let opfs: FakeOpfs;
let sources: Source[] = [];

beforeEach(async () => {
    server = new BundleServer(new Map([...files, ["manifest.json", manifest], [file.name, content]]));
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

function open(options: HttpBundleOptions = {}): Source {
    const source = httpBundle(url, options);
    sources.push(source);
    return source;
}

async function failure(promise: Promise<unknown>): Promise<string> {
    const error: unknown = await promise.then(
        () => undefined,
        (found: unknown) => found,
    );
    expect(error).toBeInstanceOf(BundleError);
    return (error as Error).message;
}

const same = (found: Uint8Array): void => {
    expect(Buffer.from(found).equals(content)).toBe(true);
};
const once =
    (fault: Fault) =>
    (_: unknown, count: number): Fault | undefined =>
        count === 1 ? fault : undefined;
const always = (fault: Fault) => (): Fault => fault;
const stored = (): Uint8Array | undefined => opfs.files().get(`file-${file.sha256}`);

describe("the manifest", () => {
    test("comes from the server at every visit, and from the cache without a server", async () => {
        const first = open();
        expect(await first.manifest(1000)).toEqual(manifest);
        expect(await first.manifest(1000)).toEqual(manifest);
        expect(server.take("manifest.json")).toHaveLength(2);
        await first.openTable(table);
        await first.close();
        await server.stop();
        expect(await open().manifest(1000)).toEqual(manifest);
    });

    test("comes from the cache if the server fails, but not if the file is missing", async () => {
        const first = open();
        await first.manifest(1000);
        await first.openTable(table);
        server.fault = always({ status: 503 });
        expect(await first.manifest(1000)).toEqual(manifest);
        server.fault = always({ status: 404 });
        expect(await failure(first.manifest(1000))).toContain("status 404");
    });

    test("is kept only after the driver has checked it", async () => {
        await open().manifest(1000);
        await sources[0]!.close();
        server.fault = always({ status: 503 });
        expect(await failure(open().manifest(1000))).toContain("status 503");
    });

    test.each([{}, { chunked: true }])("is refused above its limit (%j)", async (fault) => {
        server.fault = always(fault);
        expect(await failure(open().manifest(manifest.length - 1))).toContain("expected at most");
        expect(await open().manifest(manifest.length)).toEqual(manifest);
    });

    test("a new one deletes what it does not name", async () => {
        const first = open();
        await first.manifest(1000);
        await first.load(file);
        await (await first.openTable(table)).read([1, 2]);
        await first.close();
        const before = [...opfs.files().keys()].filter((name) => /^(file|table)/.test(name));
        expect(before).toHaveLength(4);
        const next = testTable({ id: "fedcba9876543210" });
        for (const [name, bytes] of next.files) server.files.set(name, bytes);
        server.files.set("manifest.json", new TextEncoder().encode(`{"table": "${next.table.id}"}`));
        const second = open();
        await second.manifest(1000);
        await second.openTable(next.table);
        await second.close();
        const after = [...opfs.files().keys()].filter((name) => /^(file|table)/.test(name));
        expect(after.sort()).toEqual([`table-${next.table.id}.index`, `table-${next.table.id}.slots`]);
    });
});

describe("a whole file", () => {
    test("is downloaded once, with progress", async () => {
        const seen: number[] = [];
        same(await open().load(file, { onBytes: (loaded) => seen.push(loaded) }));
        expect(seen.length).toBeGreaterThan(1);
        expect(seen).toEqual([...seen].sort((a, b) => a - b));
        expect(seen.at(-1)).toBe(content.length);
        expect(sources[0]!.stats).toMatchObject({ networkBytes: content.length, networkRequests: 0, cache: "opfs" });
        await sources[0]!.close();
        server.take();
        same(await open().load(file));
        expect(server.take()).toEqual([]);
    });

    test("is downloaded anew with `refresh`", async () => {
        same(await open().load(file));
        opfs.damage(`file-${file.sha256}`, (bytes) => bytes.fill(7, 1000, 1001));
        const damaged = await sources[0]!.load(file);
        expect(damaged[1000]).toBe(7);
        same(await sources[0]!.load(file, { refresh: true }));
        server.take();
        same(await sources[0]!.load(file));
        expect(server.take()).toEqual([]);
    });

    test.each(["opfs", "memory"] as const)("a cut connection is resumed in the same visit (%s)", async (cache) => {
        server.fault = once({ cutAfter: 100_000 });
        same(await open({ cache }).load(file));
        const [, second] = server.take(file.name);
        expect(second!.range).toMatch(/^bytes=\d+-$/);
        expect(second!.headers["if-range"]).toBe('"one"');
    });

    test("a broken download is resumed at the next visit", async () => {
        server.fault = always({ cutAfter: 60_000 });
        expect(await failure(open().load(file))).toMatch(/model.onnx.data: cannot be read in 3 attempts/);
        await sources[0]!.close();
        const length = stored()!.length;
        expect(length).toBeGreaterThan(0);
        server.take();
        server.fault = () => undefined;
        same(await open().load(file));
        const [request] = server.take(file.name);
        expect(request!.range).toBe(`bytes=${length}-`);
        expect(request!.headers["if-range"]).toBe('"one"');
    });

    test("a download that a crash ended is not taken for complete", async () => {
        server.fault = always({ cutAfter: 60_000 });
        const crashed = open().load(file);
        await new Promise((resolve) => setTimeout(resolve, 60));
        opfs.crash();
        await failure(crashed);
        server.fault = () => undefined;
        same(await open().load(file));
    });

    test.each([
        ["a server that knows If-Range", {}],
        ["one that does not", { ignoreIfRange: true }],
        ["one without ranges", { ignoreRange: true }],
    ])("another version of the file is begun anew (%s)", async (_, fault: Fault) => {
        server.fault = (_request, count) =>
            count === 1 ? { cutAfter: 100_000, etag: '"old"', wrongBytes: true } : fault;
        same(await open().load(file));
        await sources[0]!.close();
        same(await open().load(file));
    });

    test.each([
        ["404", { status: 404 }, /no such file \(status 404\)/],
        ["500", { status: 500 }, /3 attempts \(status 500\)/],
    ])("%s is an error, and the next visit works", async (_, fault: Fault, message) => {
        server.fault = always(fault);
        expect(await failure(open().load(file))).toMatch(message);
        await sources[0]!.close();
        server.fault = () => undefined;
        same(await open().load(file));
    });

    test.each([1, -1])(
        "another size (%i) is an error without a large allocation, and the next visit works",
        async (more) => {
            const wrong = new Uint8Array(content.length + more);
            for (const fault of [{}, { chunked: true }]) {
                server.files.set(file.name, wrong);
                server.fault = always(fault);
                const message = await failure(open().load(file));
                expect(message).toMatch(/another version/);
                await sources.at(-1)!.close();
                server.files.set(file.name, content);
                server.fault = () => undefined;
                const again = open();
                const found = await again.load(file);
                if (!Buffer.from(found).equals(content)) same(await again.load(file, { refresh: true }));
                await again.close();
                opfs.crash();
                opfs = new FakeOpfs();
                vi.stubGlobal("navigator", opfs.navigator());
            }
            expect(await failure(open().load({ ...file, size: 2 ** 45 }))).toMatch(/expected 35184372088832/);
        },
    );

    test("a full disk does not stop the download", async () => {
        opfs.quota = 150_000;
        const source = open();
        same(await source.load(file));
        expect(source.stats.cacheReason).toMatch(/files are not kept \(.*no space is left/);
        expect(stored()).toHaveLength(0);
        await source.close();
        opfs.quota = Infinity;
        same(await open().load(file));
        expect(sources.at(-1)!.stats.cacheReason).toBe("");
    });

    test("a signal ends a download, which is resumed later", async () => {
        server.fault = always({ cutAfter: 100_000 });
        const controller = new AbortController();
        const onBytes = (): void => {
            controller.abort("enough");
        };
        await expect(open().load(file, { signal: controller.signal, onBytes })).rejects.toBe("enough");
        server.fault = () => undefined;
        same(await sources[0]!.load(file));
        expect(server.take(file.name).at(-1)!.range).toMatch(/^bytes=[1-9]/);
    });

    test("the second tab reads what the first one keeps, and writes nothing", async () => {
        same(await open().load(file));
        const second = open();
        server.take();
        same(await second.load(file));
        expect(server.take()).toEqual([]);
        expect(second.stats).toMatchObject({ cache: "memory" });
        expect(second.stats.cacheReason).toContain("another tab");
        const names = [...opfs.files().keys()];
        await second.load({ ...file, sha256: "0".repeat(64) });
        expect([...opfs.files().keys()]).toEqual(names);
    });
});
