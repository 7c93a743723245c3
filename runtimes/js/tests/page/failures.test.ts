import { beforeAll, describe, expect, it } from "vitest";

import { expectedText, SAMPLING, visiting, type Expected, type Tab } from "./support/site.js";

let expected: Expected;

beforeAll(async () => {
    expected = await expectedText();
});

/** Try again, and write the text of the Python driver. */
async function worksAgain(tab: Tab): Promise<void> {
    await tab.retryButton.click();
    await tab.ready();
    await tab.set(SAMPLING);
    expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);
    expect(await tab.alert.isVisible()).toBe(false);
}

describe("a server that is broken and then mended", () => {
    it("has no weights", async () => {
        await visiting({ refuses: { path: "model.onnx.data", status: 404 } }, async (visitor) => {
            const tab = await visitor.tab();
            expect(await tab.failure()).toMatch(
                /\/bundle\/model\.onnx\.data: the server has no such file \(status 404\).*try again\.$/,
            );
            expect(await tab.generateButton.isDisabled()).toBe(true);
            delete visitor.server.behaviour.refuses;
            await worksAgain(tab);
        });
    });

    it("has no ONNX Runtime", async () => {
        await visiting({ refuses: { path: ".wasm", status: 404 } }, async (visitor) => {
            const tab = await visitor.tab();
            expect(await tab.failure()).toMatch(/ONNX Runtime cannot be downloaded \(status 404\).*try again\.$/);
            delete visitor.server.behaviour.refuses;
            await worksAgain(tab);
        });
    });

    it("cuts the connection of the weights, which the next attempt continues", async () => {
        await visiting({ cuts: { path: "model.onnx.data" } }, async (visitor) => {
            const tab = await visitor.tab();
            expect(await tab.failure()).toMatch(/model\.onnx\.data: cannot be read in 3 attempts.*try again\.$/);
            delete visitor.server.behaviour.cuts;
            visitor.server.requests.length = 0;
            await worksAgain(tab);
            const weights = visitor.server.requests.filter(({ path }) => path.endsWith("model.onnx.data"));
            expect(weights).toHaveLength(1);
            expect(weights[0]?.bytes).toBeLessThan(5_444_096 / 2);
        });
    });

    it("ignores ranges", async () => {
        await visiting({ ignoresRange: true }, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.prompt.fill("def ");
            await tab.generateButton.click();
            expect(await tab.failure()).toMatch(
                /the server ignores the header Range.*use a server with range requests/,
            );
            visitor.server.behaviour.ignoresRange = false;
            await tab.retryButton.click();
            await tab.ended("Done");
            expect(await tab.alert.isVisible()).toBe(false);
        });
    });

    it("cuts the connections of records", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            visitor.server.behaviour.cuts = { path: "experts" };
            await tab.set(SAMPLING);
            await tab.prompt.fill(expected.prompt);
            await tab.generateButton.click();
            expect(await tab.failure()).toMatch(/experts.*cannot be read in 3 attempts.*try again\.$/);
            delete visitor.server.behaviour.cuts;
            await tab.retryButton.click();
            await tab.ended("Done");
            expect(await tab.text.textContent()).toBe(expected.prompt + expected.text);
        });
    });
});
