import { beforeAll, describe, expect, it } from "vitest";

import { expectedText, SAMPLING, visiting, type Expected } from "./support/site.js";

let expected: Expected;

beforeAll(async () => {
    expected = await expectedText();
});

describe("a second visit", () => {
    it("takes model and records from the browser's storage", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.set(SAMPLING);
            await tab.generate(expected.prompt);
            const fetched = await tab.number("Records from the network");
            await tab.pause();

            visitor.server.requests.length = 0;
            await tab.page.reload();
            await tab.ready();
            expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);
            expect(await tab.number("Records from the network")).toBe(0);
            expect(await tab.number("Records from the cache")).toBe(fetched);
            const bundle = visitor.server.requests.filter(({ path }) => path.includes("/bundle/"));
            expect(bundle.map(({ path }) => path)).toEqual(["/bundle/manifest.json"]);
        });
    });

    it("works without a network, for what is kept", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.set(SAMPLING);
            await tab.generate(expected.prompt);
            await tab.pause();

            await visitor.context.setOffline(true);
            await visitor.server.close(); // the emulation does not reach all workers
            await tab.page.reload();
            await tab.ready();
            expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);
            expect(await tab.number("Records from the network")).toBe(0);

            await tab.prompt.fill("zebra quux");
            await tab.generateButton.click();
            expect(await tab.failure()).toMatch(/Check the connection and the server, then try again\.$/);
            expect(await tab.generate(expected.prompt)).toBe(expected.prompt + expected.text);
        });
    });

    it("works without a network before anything was written", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await visitor.context.setOffline(true);
            await visitor.server.close();
            await tab.page.reload();
            await tab.ready();
        });
    });
});

describe("two tabs at once", () => {
    it("both write, and the second says that it keeps nothing", async () => {
        await visiting({}, async (visitor) => {
            const first = await visitor.openTab();
            const second = await visitor.openTab();
            expect(await first.shown("Cache")).toBe("this browser’s storage");
            expect(await second.shown("Cache")).toContain("another tab");
            for (const tab of [first, second]) await tab.set(SAMPLING);
            const texts = await Promise.all([first.generate(expected.prompt), second.generate(expected.prompt)]);
            expect(texts).toEqual([expected.prompt + expected.text, expected.prompt + expected.text]);

            await first.page.close();
            await second.page.reload();
            await second.ready();
            expect(await second.shown("Cache")).toBe("this browser’s storage");
        });
    });
});

describe("a slow network", () => {
    it("shows the bytes of ONNX Runtime, then those of the model", async () => {
        await visiting({}, async (visitor) => {
            const seen = new Map<string, Set<number>>();
            await visitor.context.exposeFunction("heard", (text: string, share: number) => {
                const kind = /^Loading (ONNX Runtime|the model)/.exec(text)?.[1];
                // The model of this page is small: slow enough that also a busy machine shows several shares.
                if (kind === "the model") visitor.server.behaviour.bytesPerSecond = 1e6;
                if (kind) seen.set(kind, (seen.get(kind) ?? new Set()).add(share));
            });
            await visitor.context.addInitScript(() => {
                addEventListener("DOMContentLoaded", () => {
                    new MutationObserver(() => {
                        const bar = document.querySelector<HTMLProgressElement>("#opening-progress")!;
                        const text = document.querySelector("#opening-text")!.textContent;
                        (window as unknown as { heard(text: string, share: number): void }).heard(text, bar.value);
                    }).observe(document.querySelector("#opening")!, {
                        subtree: true,
                        childList: true,
                        attributes: true,
                    });
                });
            });
            visitor.server.behaviour.bytesPerSecond = 6e6;
            const tab = await visitor.openTab();
            for (const kind of ["ONNX Runtime", "the model"]) {
                const shares = [...(seen.get(kind) ?? [])].filter((share) => share > 0 && share < 1);
                expect(shares.length, kind).toBeGreaterThan(3);
                expect(shares, kind).toEqual(shares.toSorted((a, b) => a - b));
            }
            expect(await tab.page.locator("#opening").isVisible()).toBe(false);
        });
    });

    it("still shows each token when it comes", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            const network = await visitor.context.newCDPSession(tab.page);
            await network.send("Network.enable");
            await network.send("Network.emulateNetworkConditions", {
                offline: false,
                latency: 200,
                downloadThroughput: 50_000,
                uploadThroughput: 50_000,
            });
            visitor.server.behaviour.delay = 100; // the emulation does not reach all workers
            await tab.set(SAMPLING);
            const written = tab.generate(expected.prompt);
            await tab.wrote(1);
            const length = (await tab.text.textContent())!.length;
            expect(length).toBeLessThan(expected.prompt.length + expected.text.length);
            expect(await written).toBe(expected.prompt + expected.text);
        });
    });
});
