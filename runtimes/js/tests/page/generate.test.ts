import { beforeAll, describe, expect, it } from "vitest";

import { expectedText, SAMPLING, visiting, type Expected } from "./support/site.js";

const TABLE_BYTES = 22_286_336;
let expected: Expected;

beforeAll(async () => {
    expected = await expectedText();
});

describe("a person who types a prompt", () => {
    it("reads the text of the Python driver, and what it cost", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.set(SAMPLING);
            expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);

            const ranges = visitor.server.requests.filter(({ range }) => range !== undefined);
            const bytes = ranges.reduce((sum, request) => sum + request.bytes, 0);
            expect(bytes).toBeGreaterThan(0);
            expect(bytes).toBeLessThan(TABLE_BYTES / 20);
            expect(ranges.every(({ path }) => path.includes("/experts"))).toBe(true);
            // 5.4 MiB are the model without its table.
            expect(await tab.page.locator("#download-text").textContent()).toMatch(
                /^Downloaded on this visit: 5\.[3-9] MiB, 2\d % of the model \(26\.\d MiB\)\.$/,
            );
            expect(await tab.number("Requests for records")).toBe(ranges.length);
            // The record of a token is read when the text goes on after it. The prompt has some more.
            const written = new Set(expected.tokens.slice(0, -1)).size;
            expect(await tab.number("Records from the network")).toBeGreaterThanOrEqual(written);
            expect(await tab.number("Records from the cache")).toBe(0);
            expect(await tab.number("Records from memory")).toBeGreaterThan(0);
            expect(await tab.shown("Provider")).toMatch(/^onnxruntime-web \(WASM\) [\d.]+, 1 thread$/);
            expect(await tab.shown("Cache")).toBe("this browser’s storage");
            expect(await tab.shown("Tokens")).toMatch(/^[\d.,]+ per second$/);
            expect(await tab.shown("First token after")).toMatch(/^[\d.]+ m?s$/);
        });
    });

    it("stops the text while it is written, by the button and by Escape", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.set({ maxNewTokens: "400", temperature: "0.7" });
            await tab.prompt.fill("def ");
            await tab.generateButton.click();
            await tab.wrote(3);
            expect(await tab.generateButton.isDisabled()).toBe(true);
            await tab.stopButton.click();
            await tab.ended("Stopped");

            await tab.prompt.press("Control+Enter");
            await tab.wrote(3);
            await tab.page.keyboard.press("Escape");
            await tab.ended("Stopped");
            expect(await tab.alert.isVisible()).toBe(false);

            // The model goes on after it was stopped.
            await tab.set(SAMPLING);
            expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);
        });
    });

    it("sees which setting is wrong, and that WebGPU cannot be chosen here", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.set({ topP: "two" });
            await tab.prompt.fill("def ");
            await tab.generateButton.click();
            expect(await tab.failure()).toBe('Top-p: found "two", expected a number from 0 to 1');
            expect(await tab.page.locator(":focus").getAttribute("name")).toBe("topP");
            expect(await tab.page.locator('option[value="webgpu"]').isDisabled()).toBe(true);
        });
    });

    it("reads the verdict of the self-test", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.selftestButton.click();
            const verdict = tab.page.locator("#verdict").filter({ hasText: /^(Passed|Failed)/ });
            await verdict.waitFor();
            expect(await verdict.textContent()).toMatch(/^Passed: (\d+) of \1 tokens are the same; largest difference/);
        });
    });
});

describe("a provider", () => {
    it("has several threads in an isolated page, and writes the same text", async () => {
        await visiting({ isolated: true }, async (visitor) => {
            // A machine with two cores has one thread otherwise.
            await visitor.context.addInitScript(() => {
                Object.defineProperty(navigator, "hardwareConcurrency", { value: 4 });
            });
            const tab = await visitor.openTab();
            expect(await tab.shown("Provider")).toMatch(/, 2 threads$/);
            await tab.set(SAMPLING);
            expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);
        });
    });

    it("can be WebGPU", async () => {
        await visiting({ webgpu: true }, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.openSettings();
            await tab.page.getByLabel("Provider").selectOption("webgpu");
            await tab.ready();
            expect(await tab.shown("Provider")).toContain("WebGPU");
            await tab.set({ ...SAMPLING, maxNewTokens: "4" });
            const text = await tab.generate(expected.prompt);
            expect(text.length).toBeGreaterThan(expected.prompt.length);
            expect(expected.prompt + expected.text).toContain(text);
        });
    });
});
