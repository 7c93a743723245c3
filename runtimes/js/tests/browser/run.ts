/**
 * The conformance suite in headless Chromium: node .build/run.mjs [wasm] [threads] [webgpu] [webgpu-all]; default: the
 * first three.
 *
 * wasm: one thread, in a page that is not isolated. threads: two threads, in an isolated page. webgpu: on the CPU, which
 * is slow, without the cases in which the GPU computes nothing new. webgpu-all: all cases.
 */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { launchChromium } from "./chromium.js";
import { serve } from "./server.js";

const WAYS: Readonly<Record<string, { query: string; isolated: boolean; webgpu: boolean }>> = {
    wasm: { query: "provider=wasm&threads=1", isolated: false, webgpu: false },
    threads: { query: "provider=wasm&threads=2", isolated: true, webgpu: false },
    webgpu: { query: "provider=webgpu&gpu-only", isolated: false, webgpu: true },
    "webgpu-all": { query: "provider=webgpu", isolated: false, webgpu: true },
};

const build = dirname(fileURLToPath(import.meta.url)); // runtimes/js/.build
const names = process.argv.length > 2 ? process.argv.slice(2) : ["wasm", "threads", "webgpu"];
let failed = 0;
for (const name of names) {
    const way = WAYS[name];
    if (!way) {
        throw new Error(`${name}: expected ${Object.keys(WAYS).join(", ")}`);
    }
    console.log(`== ${name}`);
    failed += await runWay(way);
}
process.exitCode = failed > 0 ? 1 : 0;

async function runWay({
    query,
    isolated,
    webgpu,
}: {
    query: string;
    isolated: boolean;
    webgpu: boolean;
}): Promise<number> {
    const server = await serve(
        {
            "/conformance/": join(build, "../../conformance"),
            "/build/": join(build, "browser"),
            "/ort/": join(build, "../node_modules/onnxruntime-web/dist"),
        },
        { isolated },
    );
    const browser = await launchChromium({ webgpu });
    try {
        const page = await browser.newPage();
        page.on("pageerror", (error) => {
            console.error(error);
        });
        await page.exposeFunction("report", (text: string) => {
            console.log(text);
        });
        await page.goto(`${server.url}build/conformance.html?${query}`);
        await page.waitForFunction(() => "conformance" in window);
        return await page.evaluate(() => window.conformance());
    } finally {
        await browser.close();
        await server.close();
    }
}
