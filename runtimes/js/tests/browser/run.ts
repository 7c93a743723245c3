/**
 * The conformance suite in headless Chromium: node .build/run.mjs [--all] [wasm] [threads] [webgpu]; default: all three.
 *
 * wasm: one thread, in a page that is not isolated. threads: two threads, in an isolated page. webgpu: on the CPU, which
 * is slow. Without --all, threads and webgpu run only the cases that compare the numbers of other kernels.
 */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { launchChromium } from "./chromium.js";
import { serve } from "./server.js";

const WAYS: Readonly<Record<string, { query: string; isolated: boolean; webgpu: boolean }>> = {
    wasm: { query: "provider=wasm&threads=1", isolated: false, webgpu: false },
    threads: { query: "provider=wasm&threads=2&kernels", isolated: true, webgpu: false },
    webgpu: { query: "provider=webgpu&kernels", isolated: false, webgpu: true },
};

const build = dirname(fileURLToPath(import.meta.url)); // runtimes/js/.build
const { values, positionals } = parseArgs({ options: { all: { type: "boolean" } }, allowPositionals: true });
let failed = 0;
for (const name of positionals.length > 0 ? positionals : Object.keys(WAYS)) {
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
        await page.goto(`${server.url}build/conformance.html?${values.all ? query.replace("&kernels", "") : query}`);
        await page.waitForFunction(() => "conformance" in window);
        return await page.evaluate(() => window.conformance());
    } finally {
        await browser.close();
        await server.close();
    }
}
