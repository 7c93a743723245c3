import type { Page } from "playwright-core";
import { describe, expect, it } from "vitest";

import { visiting, type Tab } from "./support/site.js";

/** Press Tab until the focus is on an element, and return the ids and tags on the way. */
async function tabTo(tab: Tab, selector: string): Promise<void> {
    for (let presses = 0; presses < 20; presses++) {
        await tab.page.keyboard.press("Tab");
        if (await tab.page.locator(selector).evaluate((element) => element === document.activeElement)) return;
    }
    throw new Error(`${selector}: the Tab key does not reach it`);
}

/** Return the texts whose contrast with their background is below 4.5 to 1. */
async function paleTexts(page: Page): Promise<string[]> {
    return await page.evaluate(() => {
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true })!;
        const luminance = (colour: string): number => {
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
                const part = value / 255;
                return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * red! + 0.7152 * green! + 0.0722 * blue!;
        };
        const background = (element: Element): string => {
            for (let at: Element | null = element; at; at = at.parentElement) {
                const colour = getComputedStyle(at).backgroundColor;
                if (colour !== "rgba(0, 0, 0, 0)") return colour;
            }
            return "white";
        };
        return [...document.querySelectorAll<HTMLElement>("body *")]
            .filter((element) => element.checkVisibility() && !element.matches(":disabled, option"))
            .filter((element) =>
                [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent?.trim()),
            )
            .filter((element) => {
                const [a, b] = [luminance(getComputedStyle(element).color), luminance(background(element))];
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
            })
            .map((element) => element.textContent);
    });
}

describe("the page", () => {
    it("fits a phone, and is readable in light and dark", async () => {
        const context = { viewport: { width: 320, height: 640 }, isMobile: true, hasTouch: true };
        await visiting({ context }, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.set({ maxNewTokens: "24" });
            await tab.generate("x".repeat(300));
            const [width, content] = await tab.page.evaluate(() => [innerWidth, document.documentElement.scrollWidth]);
            expect(content).toBeLessThanOrEqual(width);
            for (const colorScheme of ["light", "dark"] as const) {
                await tab.page.emulateMedia({ colorScheme });
                expect(await paleTexts(tab.page), colorScheme).toEqual([]);
            }
            const small = await tab.page.evaluate(() =>
                [...document.querySelectorAll("button, input, select, summary")]
                    .filter((element) => element.checkVisibility() && element.getBoundingClientRect().height < 24)
                    .map((element) => element.outerHTML),
            );
            expect(small).toEqual([]);
        });
    });

    it("can be used by keyboard alone", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tabTo(tab, "#prompt");
            await tab.page.keyboard.type("def ");
            await tabTo(tab, "#generate");
            await tab.page.keyboard.press("Enter");
            await tab.wrote(3);
            // The focus goes to what can be done now, and then back.
            expect(await tab.page.locator(":focus").getAttribute("id")).toBe("stop");
            await tab.page.keyboard.press("Enter");
            await tab.ended("Stopped");
            expect(await tab.page.locator(":focus").getAttribute("id")).toBe("generate");
            await tabTo(tab, "summary");
            await tab.page.keyboard.press("Enter");
            await tabTo(tab, '[name="temperature"]');
            await tabTo(tab, "#provider");
            await tabTo(tab, "#selftest");
            await tab.page.keyboard.press("Enter");
            await tab.page.locator("#verdict").filter({ hasText: "Passed" }).waitFor();
        });
    });

    it("has names and live regions for screen readers", async () => {
        await visiting({}, async (visitor) => {
            const tab = await visitor.openTab();
            await tab.openSettings();
            const problems = await tab.page.evaluate(() => {
                const found: string[] = [];
                const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
                found.push(...ids.filter((id, index) => ids.indexOf(id) !== index));
                for (const element of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
                    for (const name of ["aria-labelledby", "aria-describedby"]) {
                        const id = element.getAttribute(name);
                        if (id !== null && !document.getElementById(id)?.textContent.trim()) found.push(id);
                    }
                }
                for (const control of document.querySelectorAll<HTMLInputElement>("input, select, textarea")) {
                    if (![...(control.labels ?? [])].some((label) => label.textContent.trim()))
                        found.push(control.outerHTML);
                }
                for (const element of document.querySelectorAll("section, progress, meter")) {
                    if (!element.hasAttribute("aria-labelledby")) found.push(element.outerHTML);
                }
                const levels = [...document.querySelectorAll("h1, h2, h3")].map(({ tagName }) => Number(tagName[1]));
                if (levels[0] !== 1 || levels.some((level, index) => level > (levels[index - 1] ?? 0) + 1)) {
                    found.push(`headings: ${levels.join(" ")}`);
                }
                return found;
            });
            expect(problems).toEqual([]);
            expect(await tab.page.locator("html").getAttribute("lang")).toBe("en");
            for (const [selector, role] of [
                ["#announcement", "status"],
                ["#verdict", "status"],
                ["#failure", "alert"],
            ]) {
                expect(await tab.page.locator(selector!).getAttribute("role")).toBe(role);
            }
            await tab.set({ maxNewTokens: "24" });
            await tab.generate("def ");
            expect(await tab.announcement.textContent()).toMatch(/ Done: 24 tokens\.$/);
            expect(await tab.page.locator("#picture").getAttribute("aria-label")).toMatch(/\d+ from the network/);
        });
    });
});
