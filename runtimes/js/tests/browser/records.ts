/**
 * Count the records that texts need in headless Chromium: node .build/records.mjs BUNDLE < VISITS > STATS.
 *
 * VISITS and STATS are JSON: a list of visits (records-page.ts), and the model's statistics at the end of each visit.
 * The browser keeps its storage from visit to visit.
 */

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import type { ModelStats } from "../../src/web.js";
import { launchChromium } from "./chromium.js";
import type { RecordVisit } from "./records-page.js";
import { serve } from "./server.js";

const [bundle] = process.argv.slice(2);
if (bundle === undefined) throw new Error("expected the folder of a bundle");
const visits = JSON.parse(readFileSync(0, "utf8")) as readonly RecordVisit[];
const build = dirname(fileURLToPath(import.meta.url)); // runtimes/js/.build
const server = await serve({
    "/bundle/": bundle,
    "/build/": join(build, "browser"),
    "/ort/": join(build, "../node_modules/onnxruntime-web/dist"),
});
const browser = await launchChromium();
try {
    const context = await browser.newContext();
    const stats: ModelStats[] = [];
    for (const visit of visits) {
        const page = await context.newPage();
        await page.goto(`${server.url}build/records.html`);
        await page.waitForFunction(() => "readTexts" in window);
        stats.push(await page.evaluate((given) => window.readTexts(given), visit));
        await page.close();
    }
    console.log(JSON.stringify(stats));
} finally {
    await browser.close();
    await server.close();
}
