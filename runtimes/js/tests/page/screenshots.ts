/**
 * Take the pictures of the page for the documents: node .build/screenshots.mjs FOLDER. The text in them is generated
 * by stdlib-mini.
 */

import { stat } from "node:fs/promises";
import { join } from "node:path";

import type { BrowserContextOptions } from "playwright-core";

import { launchChromium } from "../browser/chromium.js";
import { serve } from "../browser/server.js";

const MOST_BYTES = 200_000;
const PROMPT = "import os\nimport sys\n\ndef read_file(path):\n";
const SETTINGS = { maxNewTokens: "120", temperature: "0.8", topP: "0.9", seed: "4" };
const PICTURES: Readonly<Record<string, BrowserContextOptions>> = {
    "web-desktop.png": { viewport: { width: 1280, height: 1000 }, colorScheme: "light" },
    "web-phone.png": {
        viewport: { width: 390, height: 1000 },
        deviceScaleFactor: 2,
        colorScheme: "dark",
        isMobile: true,
        hasTouch: true,
    },
};

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error("expected the folder for the pictures");
const server = await serve({ "/": join(import.meta.dirname, "site") });
const browser = await launchChromium();
try {
    for (const [name, options] of Object.entries(PICTURES)) await takePicture(join(folder, name), options);
} finally {
    await browser.close();
    await server.close();
}

async function takePicture(path: string, options: BrowserContextOptions): Promise<void> {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    await page.goto(server.url);
    const generate = page.getByRole("button", { name: "Generate" });
    await page.locator("#generate:enabled").waitFor();
    await page.getByText("Settings").click();
    for (const [name, value] of Object.entries(SETTINGS)) await page.locator(`[name="${name}"]`).fill(value);
    await page.getByText("Settings").click();
    await page.getByRole("textbox", { name: "Prompt" }).fill(PROMPT);
    await generate.click();
    await page.locator("#announcement").filter({ hasText: "Done" }).waitFor({ state: "attached" });
    await page.evaluate(() => {
        scrollTo(0, 0);
        (document.activeElement as HTMLElement | null)?.blur();
    });
    await page.waitForTimeout(2000); // the squares of the picture stop to glow
    await page.screenshot({ path, fullPage: options.isMobile !== true });
    await context.close();
    const { size } = await stat(path);
    console.log(`${path}: ${size} bytes`);
    if (size >= MOST_BYTES) throw new Error(`${path}: has ${size} bytes, expected fewer than ${MOST_BYTES}`);
}
