/**
 * The tables of docs/performance.md, "In a browser": node .build/browser.mjs --bundles FOLDER [--only TABLE] [--rounds N].
 *
 * FOLDER has the bundles that `make bench-js` writes. TABLE is steps, first-token or fetch; default: all. Chromium runs
 * headless. Visits take turns, so that other load affects all of them.
 */

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createSecureServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import type { Browser, BrowserContext } from "playwright-core";

import { launchChromium } from "../tests/browser/chromium.js";
import { answer, serve, type Behaviour, type TestServer } from "../tests/browser/server.js";
import type { Visit, VisitResult } from "./browser-page.js";

const { values } = parseArgs({
    options: { bundles: { type: "string" }, only: { type: "string" }, rounds: { type: "string", default: "3" } },
});
const bundles = values.bundles;
if (bundles === undefined) {
    throw new Error("--bundles: expected a folder with bundles");
}
const rounds = Number(values.rounds);
const build = dirname(fileURLToPath(import.meta.url)); // runtimes/js/.build
const FOLDERS = {
    "/bundles/": bundles,
    "/build/": join(build, "browser"),
    "/ort/": join(build, "../node_modules/onnxruntime-web/dist"),
};
const PROMPT = [5, 6, 7, 8, 900, 1000, 11, 12];
const MB = 1e6;

/** Open the page in a new tab, and do a visit. Return also the RAM of the renderer: at the end, and its peak. */
async function visit(
    browser: Browser,
    context: BrowserContext,
    server: TestServer,
    what: Visit,
): Promise<VisitResult & { rss: number; peak: number }> {
    const page = await context.newPage();
    await page.goto(`${server.url}build/bench.html`);
    await page.waitForFunction(() => "visit" in window);
    const result = await page.evaluate((given) => window.visit(given), what);
    const memory = await rendererMemory(browser);
    await page.close();
    return { ...result, ...memory };
}

/** Return the resident bytes of the largest renderer: now, and its peak. */
async function rendererMemory(browser: Browser): Promise<{ rss: number; peak: number }> {
    const session = await browser.newBrowserCDPSession();
    const { processInfo } = await session.send("SystemInfo.getProcessInfo");
    await session.detach();
    const sizes = processInfo
        .filter(({ type }) => type === "renderer")
        .map(({ id }) => readFileSync(`/proc/${id}/status`, "utf8"))
        .map((status) => ({ rss: bytesOf(status, "VmRSS"), peak: bytesOf(status, "VmHWM") }));
    return sizes.reduce((first, second) => (second.peak > first.peak ? second : first));
}

function bytesOf(status: string, field: string): number {
    return 1024 * Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)?.[1] ?? 0);
}

function median(numbers: readonly number[]): number {
    const sorted = [...numbers].sort((first, second) => first - second);
    return sorted[Math.floor(sorted.length / 2)]!;
}

function print(rows: readonly (readonly (string | number)[])[]): void {
    const [head, ...rest] = rows;
    console.log([head!, head!.map(() => "---"), ...rest].map((row) => `| ${row.join(" | ")} |`).join("\n"));
}

/** Milliseconds a step, and the RAM of the renderer, for each dense dtype and backend. */
async function steps(): Promise<void> {
    const ways = [
        { name: "WASM, 1 thread", provider: "wasm", threads: 1 },
        { name: "WASM, 2 threads", provider: "wasm", threads: 2 },
        { name: "WebGPU (SwiftShader)", provider: "webgpu", threads: 1 },
    ] as const;
    const found = new Map<string, (VisitResult & { rss: number; peak: number })[]>();
    for (let round = 0; round < rounds; round++) {
        for (const dtype of ["float32", "float16", "int8", "int4"]) {
            for (const { name, provider, threads } of ways) {
                const key = `${dtype} | ${name}`;
                const tokens = provider === "webgpu" ? 4 : 33;
                const what = { bundle: `/bundles/${dtype}/`, provider, threads, prompt: PROMPT, tokens };
                const result = await alone({ isolated: threads > 1 }, provider === "webgpu", what);
                found.set(key, [...(found.get(key) ?? []), result]);
            }
        }
    }
    console.log(`\n**Steps** (160M class; decode after ${PROMPT.length} tokens; ${rounds} visits in turns)\n`);
    print([
        ["dense dtype", "backend", "ms a step: median", "least", "download", "RAM of the renderer", "its peak"],
        ...[...found].map(([key, results]) => {
            const times = results.flatMap((result) => result.steps);
            const { stats, rss, peak } = results[0]!;
            const sizes = [stats.source.networkBytes, rss, peak].map((bytes) => `${(bytes / MB).toFixed(0)} MB`);
            return [key, median(times).toFixed(1), Math.min(...times).toFixed(1), ...sizes];
        }),
    ]);
}

/** Do a visit in a browser of its own. */
async function alone(
    behaviour: Behaviour,
    webgpu: boolean,
    what: Visit,
): Promise<VisitResult & { rss: number; peak: number }> {
    const server = await serve(FOLDERS, behaviour);
    const browser = await launchChromium({ webgpu });
    try {
        return await visit(browser, await browser.newContext(), server, what);
    } finally {
        await browser.close();
        await server.close();
    }
}

/** Serve with HTTP/2 and a certificate that is made now. */
async function serveHttp2(behaviour: Behaviour): Promise<TestServer> {
    const folder = mkdtempSync(join(tmpdir(), "molkv-"));
    const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
    const request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"];
    execFileSync("openssl", [...request, "-keyout", key, "-out", cert], { stdio: "ignore" });
    const requests: TestServer["requests"] = [];
    const server = createSecureServer({ key: readFileSync(key), cert: readFileSync(cert) }, (message, response) => {
        void answer(message as never, response as never, FOLDERS, behaviour, requests);
    });
    rmSync(folder, { recursive: true });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return {
        url: `https://127.0.0.1:${(server.address() as AddressInfo).port}/`,
        behaviour,
        requests,
        close: () => {
            server.close();
            return Promise.resolve();
        },
    };
}

/** Time to the first token of a first and a second visit, for each delay and protocol. */
async function firstToken(): Promise<void> {
    const rows: string[][] = [];
    for (const bundle of ["stdlib-mini-float32", "int8"]) {
        for (const [protocol, start] of [
            ["HTTP/1.1", (behaviour: Behaviour) => serve(FOLDERS, behaviour)],
            ["HTTP/2", serveHttp2],
        ] as const) {
            for (const delay of [0, 50, 200]) {
                const times = { cold: [] as number[], warm: [] as number[] };
                for (let round = 0; round < rounds; round++) {
                    const server = await start({ delay });
                    const browser = await launchChromium();
                    const context = await browser.newContext({ ignoreHTTPSErrors: true });
                    const what = { bundle: `/bundles/${bundle}/`, provider: "wasm", threads: 1, tokens: 1 } as const;
                    for (const kind of ["cold", "warm"] as const) {
                        const result = await visit(browser, context, server, { ...what, prompt: PROMPT });
                        times[kind].push(result.firstToken / 1000);
                    }
                    await browser.close();
                    await server.close();
                }
                const cells = [median(times.cold), median(times.warm)].map((seconds) => `${seconds.toFixed(2)} s`);
                rows.push([bundle, protocol, `${delay} ms`, ...cells]);
            }
        }
    }
    console.log(`\n**Time to the first token** (WASM, 1 thread; medians of ${rounds} visits)\n`);
    print([["bundle", "protocol", "delay of each answer", "first visit", "second visit"], ...rows]);
}

/** Bytes and requests for 100 tokens of a model with a large table, in a first and a second visit. */
async function fetched(): Promise<void> {
    const server = await serve(FOLDERS);
    const browser = await launchChromium();
    const context = await browser.newContext();
    const rows: (string | number)[][] = [];
    for (const kind of ["first", "second"]) {
        const what = { bundle: "/bundles/int8/", provider: "wasm", threads: 1, prompt: PROMPT, tokens: 100 } as const;
        const { stats } = await visit(browser, context, server, what);
        const { networkBytes, networkRecords, networkRequests, cachedRecords } = stats.source;
        const recordBytes = networkRecords * stats.recordBytes;
        rows.push([
            kind,
            `${(stats.tableBytes / MB).toFixed(0)} MB`,
            `${((networkBytes - recordBytes) / MB).toFixed(2)} MB`,
            `${(recordBytes / MB).toFixed(2)} MB`,
            networkRecords,
            networkRequests,
            cachedRecords,
        ]);
    }
    console.log("\n**Bytes of 100 tokens** (160M class, int8)\n");
    print([
        [
            "visit",
            "tables",
            "other bytes from the network",
            "records from the network",
            "number",
            "requests",
            "records from OPFS",
        ],
        ...rows,
    ]);
    await browser.close();
    await server.close();
}

const TABLES = { steps, "first-token": firstToken, fetch: fetched };
for (const [name, table] of Object.entries(TABLES)) {
    if (values.only === undefined || values.only === name) {
        await table();
    }
}
