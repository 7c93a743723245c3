/** The elements of the page, and how they show states, texts and numbers. */

import type { ModelStats, SelfTest } from "../src/options.js";
import { Announcer } from "./announcer.js";
import type { OpeningProgress } from "./driver.js";
import { bytesText, countText, durationText, plural, rateText, shareText } from "./numbers.js";

/** Return the element with this id. */
export function element<T extends HTMLElement>(id: string, type: new () => T): T {
    const found = document.getElementById(id);
    if (!(found instanceof type)) throw new Error(`index.html: found no ${type.name} with the id ${id}`);
    return found;
}

/** Times of one call, as a person sees them: seconds, and tokens after the first. */
export interface CallTimes {
    readonly firstToken: number;
    readonly laterTokens: number;
    readonly laterSeconds: number;
}

/** The text that is written: a prompt and its continuation, or the messages of a chat. */
export class TextView {
    readonly #box = element("text", HTMLDivElement);
    readonly #announcer = new Announcer((text) => {
        element("announcement", HTMLParagraphElement).textContent = text;
    });
    #end: HTMLElement = this.#box;

    /** Remove everything. */
    clear(): void {
        this.#box.replaceChildren();
        this.#end = this.#box;
    }

    /** Replace everything by a prompt. What is appended continues it. */
    startText(prompt: string): void {
        this.clear();
        const start = document.createElement("span");
        start.className = "prompt";
        start.textContent = prompt;
        this.#end = document.createElement("span");
        this.#box.append(start, this.#end);
    }

    /** Begin a message of a chat, and return its element. What is appended belongs to it. */
    startMessage(author: string, content: string): HTMLElement {
        const message = document.createElement("article");
        const name = document.createElement("h3");
        name.textContent = author;
        this.#end = document.createElement("div");
        this.#end.textContent = content;
        message.append(name, this.#end);
        this.#box.append(message);
        this.#box.scrollTop = this.#box.scrollHeight;
        return message;
    }

    /** Append a piece of text. The box follows it, unless a person scrolled up. */
    append(piece: string): void {
        if (piece === "") return;
        const follows = this.#box.scrollHeight - this.#box.scrollTop - this.#box.clientHeight < 40;
        this.#end.append(piece);
        if (follows) this.#box.scrollTop = this.#box.scrollHeight;
        this.#announcer.push(piece);
    }

    /** Announce the end of the text. */
    finish(sentence: string): void {
        this.#end.normalize();
        this.#announcer.finish(sentence);
    }
}

/** Show how far the opening is; undefined: the model is open, or failed to open. */
export function showProgress(progress: OpeningProgress | undefined): void {
    const bar = element("opening-progress", HTMLProgressElement);
    element("opening", HTMLElement).hidden = progress === undefined;
    if (!progress) return;
    const { phase, loadedBytes, totalBytes } = progress;
    const amount = `${bytesText(loadedBytes)} of ${bytesText(totalBytes)} …`;
    const texts = {
        runtime: `Loading ONNX Runtime, which runs the model: ${amount}`,
        manifest: "Reading the description of the model …",
        download: `Loading the model without its table: ${amount}`,
        load: "Preparing the model …",
    };
    element("opening-text", HTMLParagraphElement).textContent = texts[phase];
    if (phase !== "load" && totalBytes > 0) bar.value = Math.min(1, loadedBytes / totalBytes);
    else bar.removeAttribute("value");
}

/** Show an error and, if there is something to try again, a button for it; undefined: no error. */
export function showFailure(text: string | undefined, canRetry = false): void {
    element("failure-text", HTMLParagraphElement).textContent = text ?? "";
    element("retry", HTMLButtonElement).hidden = !canRetry;
    element("failure", HTMLDivElement).hidden = text === undefined;
}

/** Show the counters of a model, and the times of the last call. */
export function showStats(stats: ModelStats, times: CallTimes | undefined): void {
    const { source } = stats;
    const whole = stats.tableBytes + stats.denseBytes;
    element("download-text", HTMLParagraphElement).textContent =
        `Downloaded on this visit: ${bytesText(source.networkBytes)}, ` +
        `${shareText(source.networkBytes, whole)} of the model (${bytesText(whole)}).`;
    element("download", HTMLMeterElement).value = Math.min(1, source.networkBytes / whole);
    const numbers = {
        table: `${bytesText(stats.tableBytes)}, ${plural(stats.vocabSize, "record")}`,
        dense: bytesText(stats.denseBytes),
        record: bytesText(stats.recordBytes),
        network: countText(source.networkRecords),
        cache: countText(source.cachedRecords),
        memory: countText(stats.recordsInMemory),
        requests: countText(source.networkRequests),
        rate: times ? rateText(times.laterTokens, times.laterSeconds) : "–",
        first: times ? durationText(times.firstToken) : "–",
        provider: `${stats.backend} ${stats.onnxruntime}, ${plural(stats.threads, "thread")}`,
        kept: keptText(stats),
    };
    for (const [name, text] of Object.entries(numbers)) element(`n-${name}`, HTMLElement).textContent = text;
}

/** Show the verdict of the self-test. */
export function showVerdict({ passed, failures, ...result }: SelfTest): void {
    const verdict = element("verdict", HTMLParagraphElement);
    verdict.className = passed ? "passed" : "failed";
    const tokens = `${countText(result.greedyEqual)} of ${plural(result.greedyTokens, "token")} are the same`;
    const difference = `largest difference ${result.maxAbs.toExponential(1)}, limit ${result.maxAbsLimit.toExponential(1)}`;
    verdict.textContent = passed
        ? `Passed: ${tokens}; ${difference}.`
        : `Failed: ${failures.join("; ")} (${tokens}; ${difference}). Choose the other provider.`;
}

function keptText({ source: { cache, cacheReason } }: ModelStats): string {
    const texts = { opfs: "this browser’s storage", memory: "memory, until the tab closes", none: "none" };
    return cacheReason === "" ? texts[cache] : `${texts[cache]}: ${cacheReason}`;
}
