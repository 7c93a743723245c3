/** The packaged page in Chromium, as a person uses it. Needs .build/site, which `make test-page` writes. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import type { Browser, BrowserContext, BrowserContextOptions, Locator, Page } from "playwright-core";
import { afterAll, expect } from "vitest";

import { launchChromium, type LaunchOptions } from "../../browser/chromium.js";
import { serve, type Behaviour, type TestServer } from "../../browser/server.js";

export const BUILD = join(import.meta.dirname, "../../../.build");
const PATIENCE_MS = 40_000;

/** What `molkv-export run --json` printed: a prompt, and how the Python driver continues it. */
export interface Expected {
    readonly prompt: string;
    readonly text: string;
    readonly tokens: readonly number[];
}

/** The options of `molkv-export run` in rules.mk that gave the expected text. */
export const SAMPLING = { maxNewTokens: "64", temperature: "0.7", topP: "0.9", seed: "3" };

/** Return what the Python driver wrote. */
export async function expectedText(): Promise<Expected> {
    return JSON.parse(await readFile(join(BUILD, "site-expected.json"), "utf8")) as Expected;
}

/** Serve the site from a free port. */
export async function serveSite(behaviour: Behaviour = {}): Promise<TestServer> {
    return await serve({ "/": join(BUILD, "site") }, behaviour);
}

const browsers = new Map<string, Promise<Browser>>();

afterAll(async () => {
    for (const browser of browsers.values()) await (await browser).close();
});

/** Return a browser of this file's tests. */
async function browserWith(options: LaunchOptions): Promise<Browser> {
    const key = JSON.stringify(options);
    const started = browsers.get(key) ?? launchChromium(options);
    browsers.set(key, started);
    return await started;
}

/** Run a test with a fresh profile, at a server of its own. Errors in pages make the test fail. */
export async function visiting(
    options: Behaviour & { readonly webgpu?: boolean; readonly context?: BrowserContextOptions },
    test: (visitor: Visitor) => Promise<void>,
): Promise<void> {
    const { webgpu = false, context, ...behaviour } = options;
    const server = await serveSite(behaviour);
    try {
        await visitingAt(server, { webgpu, context }, test);
    } finally {
        await server.close();
    }
}

/** Run a test with a fresh profile, at a server that runs. Errors in pages make the test fail. */
export async function visitingAt<S extends { readonly url: string }>(
    server: S,
    options: LaunchOptions & { readonly context?: BrowserContextOptions | undefined },
    test: (visitor: Visitor<S>) => Promise<void>,
): Promise<void> {
    const { context: contextOptions = {}, ...launch } = options;
    const context = await (await browserWith(launch)).newContext(contextOptions);
    try {
        const visitor = new Visitor(server, context);
        await test(visitor);
        expect(visitor.errors).toEqual([]);
    } finally {
        await context.close();
    }
}

/** A person with one browser. */
export class Visitor<S extends { readonly url: string } = TestServer> {
    /** Errors of scripts in all tabs. */
    readonly errors: Error[] = [];

    constructor(
        readonly server: S,
        readonly context: BrowserContext,
    ) {}

    /** Open a tab at the page; the model is not open yet. */
    async tab(): Promise<Tab> {
        const page = await this.context.newPage();
        page.on("pageerror", (error) => this.errors.push(error));
        page.setDefaultTimeout(PATIENCE_MS);
        await page.goto(this.server.url, { waitUntil: "domcontentloaded" });
        return new Tab(page);
    }

    /** Open a tab, and wait until the model is open. */
    async openTab(): Promise<Tab> {
        const tab = await this.tab();
        await tab.ready();
        return tab;
    }
}

/** The page in a tab. Elements are found by what a person sees or hears, where that is possible. */
export class Tab {
    readonly prompt: Locator;
    readonly generateButton: Locator;
    readonly stopButton: Locator;
    readonly selftestButton: Locator;
    readonly retryButton: Locator;
    readonly text: Locator;
    readonly alert: Locator;
    readonly announcement: Locator;

    constructor(readonly page: Page) {
        this.prompt = page.getByRole("textbox", { name: "Prompt" });
        this.generateButton = page.getByRole("button", { name: "Generate" });
        this.stopButton = page.getByRole("button", { name: "Stop" });
        this.selftestButton = page.getByRole("button", { name: "Run the self-test" });
        this.retryButton = page.getByRole("button", { name: "Try again" });
        this.text = page.getByRole("group", { name: "Text" });
        this.alert = page.getByRole("alert");
        this.announcement = page.locator("#announcement");
    }

    /** Wait until the page can generate. */
    async ready(): Promise<void> {
        await this.page.waitForFunction(() => {
            const button = document.querySelector<HTMLButtonElement>("#generate");
            if (document.querySelector<HTMLElement>("#failure")?.hidden === false) {
                throw new Error(document.querySelector("#failure-text")?.textContent ?? "");
            }
            return button?.disabled === false;
        });
    }

    /** Type settings into the fields with these names. */
    async set(settings: Readonly<Record<string, string>>): Promise<void> {
        await this.openSettings();
        for (const [name, value] of Object.entries(settings)) await this.page.locator(`[name="${name}"]`).fill(value);
    }

    async openSettings(): Promise<void> {
        const settings = this.page.locator("details");
        if ((await settings.getAttribute("open")) === null) await this.page.getByText("Settings").click();
    }

    /** Generate, and return the text with its prompt when it is complete. */
    async generate(prompt: string): Promise<string> {
        await this.prompt.fill(prompt);
        await this.generateButton.click();
        await this.ended("Done");
        return (await this.text.textContent()) ?? "";
    }

    /** Wait until a screen reader hears that the text is "Done" or "Stopped". */
    async ended(how: "Done" | "Stopped"): Promise<void> {
        await this.announcement.filter({ hasText: how }).waitFor({ state: "attached" });
        await this.ready();
    }

    /** Leave the page open for a moment: the driver writes the last records to the disk within half a second. */
    async pause(): Promise<void> {
        await this.page.waitForTimeout(1500);
    }

    /** Wait for new text after the prompt. */
    async wrote(characters: number): Promise<void> {
        await this.page.waitForFunction(
            (least) => (document.querySelector("#text > span:last-child")?.textContent.length ?? 0) >= least,
            characters,
        );
    }

    /** Wait for an error, and return its text. */
    async failure(): Promise<string> {
        await this.alert.waitFor();
        return (await this.page.locator("#failure-text").textContent()) ?? "";
    }

    /** Return a number that the page shows, such as that of "Records from the network". */
    async number(label: string): Promise<number> {
        return Number((await this.shown(label)).replaceAll(",", ""));
    }

    /** Return the text beside a label. */
    async shown(label: string): Promise<string> {
        const row = this.page.locator("dl > div").filter({ has: this.page.getByText(label, { exact: true }) });
        // The numbers appear at the next frame.
        await this.page.evaluate(
            () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))),
        );
        return (await row.locator("dd").textContent()) ?? "";
    }
}
