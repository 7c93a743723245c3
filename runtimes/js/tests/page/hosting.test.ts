/** The page at nginx, with the configuration of docs/hosting.md and with wrong ones. */

import { execFileSync } from "node:child_process";
import { cp, mkdtemp, rm, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { build } from "esbuild";
import { beforeAll, describe, expect, it } from "vitest";

import type { ModelStats } from "../../src/web.js";
import { serve } from "../browser/server.js";
import { HOSTING, type LoggedAnswer, Nginx, type Site } from "./support/nginx.js";
import { BUILD, expectedText, SAMPLING, type Tab, type Visitor, visitingAt, type Expected } from "./support/site.js";

const SITE = join(BUILD, "site");
const SHARD = "experts-00001-of-00001.safetensors";
const OURS = `include ${HOSTING}/nginx.conf;`;
/** A host that knows the types of the page's files, and nothing else. */
const TYPES = "types { text/html html; text/css css; text/javascript js mjs; application/wasm wasm; }";
let expected: Expected;

beforeAll(async () => {
    expected = await expectedText();
});

/** Run a test at nginx. */
async function atNginx(site: Site, test: (visitor: Visitor<Nginx>) => Promise<void>): Promise<void> {
    const nginx = await Nginx.start(site);
    try {
        await visitingAt(nginx, { anyCertificate: true }, test);
    } finally {
        await nginx.close();
    }
}

/** Run a test with a copy of the site. */
async function withCopy(test: (root: string) => Promise<void>): Promise<void> {
    const root = await mkdtemp(join(tmpdir(), "molkv-site-"));
    try {
        await cp(SITE, root, { recursive: true });
        await test(root);
    } finally {
        await rm(root, { recursive: true });
    }
}

async function writesExpected(tab: Tab): Promise<void> {
    await tab.set(SAMPLING);
    expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);
}

async function failureOfGenerate(tab: Tab): Promise<string> {
    await tab.prompt.fill("def ");
    await tab.generateButton.click();
    return await tab.failure();
}

const ofRecords = (answers: readonly LoggedAnswer[]): LoggedAnswer[] =>
    answers.filter(({ path }) => path.endsWith(`/${SHARD}`));

describe("nginx with our configuration", () => {
    it("serves HTTP/2: the ranges come through one connection, and the page has threads", async () => {
        await atNginx({ root: SITE, tls: true, lines: [OURS] }, async (visitor) => {
            // A machine with two cores has one thread otherwise.
            await visitor.context.addInitScript(() => {
                Object.defineProperty(navigator, "hardwareConcurrency", { value: 4 });
            });
            const tab = await visitor.openTab();
            expect(await tab.shown("Provider")).toMatch(/, 2 threads$/);
            expect(await tab.shown("Cache")).toBe("this browser’s storage");
            await writesExpected(tab);
            const requests = await tab.number("Requests for records");

            const first = await visitor.server.answers();
            expect(new Set(first.map(({ protocol }) => protocol))).toEqual(new Set(["HTTP/2.0"]));
            const records = ofRecords(first);
            expect(records).toHaveLength(requests);
            expect(requests).toBeGreaterThan(10);
            for (const answer of records) expect(answer).toMatchObject({ status: 206, encoding: "" });
            expect(new Set(records.map(({ connection }) => connection)).size).toBe(1);
            const typesOf = (end: string): Set<string> =>
                new Set(first.filter(({ path }) => path.endsWith(end)).map(({ type }) => type));
            expect(typesOf(".wasm")).toEqual(new Set(["application/wasm"]));
            expect(typesOf(".mjs")).toEqual(new Set(["text/javascript; charset=utf-8"]));
            const wasm = first.filter(({ path }) => path.endsWith(".wasm"));
            expect(new Set(wasm.map(({ encoding }) => encoding))).toEqual(new Set(["gzip"]));
        });
    });

    it("serves HTTP/1.1, and a second visit without a download", async () => {
        await atNginx({ root: SITE, lines: [OURS] }, async (visitor) => {
            const tab = await visitor.openTab();
            await writesExpected(tab);
            const records = ofRecords(await visitor.server.answers());
            expect(records.length).toBeGreaterThan(10);
            for (const answer of records) expect(answer).toMatchObject({ protocol: "HTTP/1.1", status: 206 });

            await tab.pause();
            await tab.page.reload();
            await tab.ready();
            await writesExpected(tab);
            expect(await tab.number("Records from the network")).toBe(0);
            const again = (await visitor.server.answers()).filter(({ path }) => path.includes("/bundle/"));
            expect(again.map(({ path, status }) => [path, status])).toEqual([["/bundle/manifest.json", 304]]);
        });
    });

    it("shows by its ETag that a shard was replaced while a page is open", async () => {
        await withCopy(async (root) => {
            await atNginx({ root, lines: [OURS] }, async (visitor) => {
                const tab = await visitor.openTab();
                await writesExpected(tab);
                await utimes(join(root, "bundle", SHARD), 1, 1);
                await tab.prompt.fill("zebra quux");
                await tab.generateButton.click();
                expect(await tab.failure()).toMatch(
                    /safetensors: its ETag or Last-Modified changed.*open the bundle again/,
                );
            });
        });
    });
});

describe("a bundle at another origin than its page", () => {
    /** Serve a page with the driver, run one text there, and return the driver's statistics. */
    async function visitFromElsewhere({ server, context }: Visitor<Nginx>): Promise<ModelStats> {
        const root = await mkdtemp(join(tmpdir(), "molkv-page-"));
        const [page, worker] = ["tests/browser/records-page.ts", "src/web-worker.ts"];
        await build({ entryPoints: [page, worker], bundle: true, format: "esm", outdir: root, entryNames: "[name]" });
        await cp("tests/browser/records.html", join(root, "records.html"));
        const folders = { "/build/": root, "/ort/": "node_modules/onnxruntime-web/dist" };
        const other = await serve(folders, { isolated: true });
        try {
            const tab = await context.newPage();
            await tab.goto(`${other.url}build/records.html`);
            await tab.waitForFunction(() => "readTexts" in window);
            const visit = { bundle: `${server.url}bundle/`, cacheBytes: 2 ** 28, texts: [[1, 2, 900]], prompt: 2 };
            return await tab.evaluate((given) => window.readTexts(given), visit);
        } finally {
            await other.close();
            await rm(root, { recursive: true });
        }
    }

    it("can be read with our headers, without requests that ask before", async () => {
        const lines = [OURS, `include ${HOSTING}/nginx-cors.conf;`];
        await atNginx({ root: SITE, lines }, async (visitor) => {
            const { source } = await visitFromElsewhere(visitor);
            expect(source).toMatchObject({ cache: "opfs", networkRecords: 3, networkRequests: 2 });
            const answers = await visitor.server.answers();
            expect(new Set(answers.map(({ method }) => method))).toEqual(new Set(["GET"]));
            expect(ofRecords(answers).map(({ status }) => status)).toEqual([206, 206]);
        });
    });

    it("cannot be read without them", async () => {
        await atNginx({ root: SITE, lines: [OURS] }, async (visitor) => {
            const message = /manifest\.json: cannot be read in 3 attempts \(Failed to fetch\).*\(also CORS/;
            await expect(visitFromElsewhere(visitor)).rejects.toThrow(message);
        });
    });
});

describe("nginx that is set up wrongly", () => {
    it("has no ranges", async () => {
        await atNginx({ root: SITE, lines: [OURS, "max_ranges 0;"] }, async (visitor) => {
            const failure = await failureOfGenerate(await visitor.openTab());
            expect(failure).toMatch(
                /safetensors: the server ignores the header Range.*use a server with range requests/,
            );
        });
    });

    it("has only compressed shards", async () => {
        await withCopy(async (root) => {
            execFileSync("gzip", ["-1", join(root, "bundle", SHARD)]);
            await atNginx({ root, lines: [TYPES, "gzip_static always;"] }, async (visitor) => {
                const failure = await failureOfGenerate(await visitor.openTab());
                expect(failure).toMatch(
                    /safetensors: cannot be read in 3 attempts \(Failed to fetch\).*and compression of this file/,
                );
            });
        });
    });

    it("compresses everything that a browser accepts compressed: the page works, as it asks for plain ranges", async () => {
        const lines = [TYPES, "gzip on;", "gzip_types *;"];
        await atNginx({ root: SITE, lines }, async (visitor) => {
            await writesExpected(await visitor.openTab());
            const answers = await visitor.server.answers();
            const weights = answers.filter(({ path }) => path.endsWith("/model.onnx.data"));
            expect(weights.map(({ encoding }) => encoding)).toEqual(["gzip"]);
            for (const answer of ofRecords(answers)) expect(answer).toMatchObject({ status: 206, encoding: "" });
        });
    });
});
