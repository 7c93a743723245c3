/** The page: opens the model, continues prompts, and shows where records come from. */

import type { Model } from "../src/api.js";
import type { GenerateOptions, Message, ModelStats } from "../src/options.js";
import { PictureCanvas } from "./canvas.js";
import { openModel, type Provider } from "./driver.js";
import { failureText } from "./failures.js";
import { keepPageOffline } from "./offline.js";
import { Origins } from "./origins.js";
import { TablePicture } from "./picture.js";
import { FieldError, readSettings, readStored, readTokenIds } from "./settings.js";
import { plural } from "./numbers.js";
import { element, showFailure, showProgress, showStats, showVerdict, TextView, type CallTimes } from "./view.js";
import { Writer, type Prompt } from "./writer.js";

/** An open model, and what the page knows of its work. */
interface Opened {
    readonly model: Model;
    readonly writer: Writer;
    readonly origins: Origins;
    readonly picture: TablePicture;
    stats: ModelStats;
    times: CallTimes | undefined;
}

const STORED = `molkv-page ${location.pathname}`;
const form = element("form", HTMLFormElement);
const promptBox = element("prompt", HTMLTextAreaElement);
const provider = element("provider", HTMLSelectElement);
const prefetch = element("prefetch", HTMLSelectElement);
const [generateButton, stopButton, clearButton, selftestButton, retryButton] = [
    element("generate", HTMLButtonElement),
    element("stop", HTMLButtonElement),
    element("clear", HTMLButtonElement),
    element("selftest", HTMLButtonElement),
    element("retry", HTMLButtonElement),
];
const text = new TextView();
const canvas = new PictureCanvas(element("picture", HTMLCanvasElement));

let opened: Opened | undefined;
let running: AbortController | undefined;
let retry: () => void = () => undefined;
let messages: Message[] = [];
let paints = false;
let lastOpening: Promise<void> = Promise.resolve();

/** Open the model with the chosen provider, in place of the one that is open or is being opened. */
function open(): Promise<void> {
    running?.abort();
    // An earlier opening holds the browser's storage until it has ended.
    lastOpening = lastOpening.then(openNow);
    return lastOpening;
}

async function openNow(): Promise<void> {
    const old = opened;
    const opening = new AbortController();
    running?.abort();
    [opened, running] = [undefined, opening];
    showFailure(undefined);
    showProgress({ phase: "manifest", loadedBytes: 0, totalBytes: 0 });
    element("verdict", HTMLParagraphElement).textContent = "";
    showState();
    try {
        await old?.model.close();
        opening.signal.throwIfAborted();
        const model = await openModel({
            provider: provider.value as Provider,
            prefetch: Number(prefetch.value),
            onProgress: (progress) => {
                if (running === opening) showProgress(progress);
            },
            signal: opening.signal,
        });
        if (opening.signal.aborted) {
            await model.close();
            return;
        }
        show(model);
    } catch (error) {
        if (opening.signal.aborted) return;
        fail(error, () => void open());
    }
    showProgress(undefined);
    running = undefined;
    showState();
}

function show(model: Model): void {
    const { stats } = model;
    const picture = new TablePicture(stats.vocabSize);
    opened = { model, writer: new Writer(model), origins: new Origins(), picture, stats, times: undefined };
    canvas.show(picture);
    element("scale", HTMLParagraphElement).textContent = picture.scale;
    element("modes", HTMLFieldSetElement).hidden = !model.hasChatTemplate;
    paint();
}

async function generate(): Promise<void> {
    if (!opened || running) return;
    const { model, writer } = opened;
    showFailure(undefined);
    markField(undefined);
    let options: GenerateOptions, prompt: Prompt;
    const answer = isChat() ? { role: "user", content: promptBox.value } : undefined;
    try {
        options = readSettings(storedTexts(), model.stats.defaultSampling);
        prompt = answer ? { messages: [...messages, answer] } : textPrompt(model, promptBox.value);
    } catch (error) {
        markField(error);
        fail(error);
        return;
    }
    const shown = answer ? [text.startMessage("You", promptBox.value), text.startMessage("Model", "")] : [];
    if (!answer) text.startText(promptBox.value);
    opened.stats = model.stats;
    const hadFocus = document.activeElement === generateButton;
    const call = (running = new AbortController());
    showState();
    if (hadFocus) stopButton.focus();
    try {
        const written = await write(writer, prompt, { ...options, signal: call.signal });
        if (answer) endTurn(answer, written);
    } catch (error) {
        for (const message of shown) message.remove();
        text.finish("");
        fail(error, () => void generate());
    }
    const stopHadFocus = document.activeElement === stopButton;
    running = undefined;
    showState();
    if (stopHadFocus) generateButton.focus();
}

/** Write tokens until the text ends or a person stops it. Return the new text. */
async function write(
    writer: Writer,
    prompt: Prompt,
    options: GenerateOptions & { signal: AbortSignal },
): Promise<string> {
    const start = performance.now();
    let [first, count, written] = [0, 0, ""];
    try {
        for await (const { token, read } of writer.write(prompt, options)) {
            const now = performance.now();
            if (count === 0) first = now;
            count += 1;
            const piece = opened?.model.hasTokenizer ? token.text : `${token.id} `;
            written += piece;
            text.append(piece);
            const times = { laterTokens: count - 1, laterSeconds: (now - first) / 1000 };
            countRecords(read, { firstToken: (first - start) / 1000, ...times });
        }
        text.finish(`Done: ${plural(count, "token")}.`);
    } catch (error) {
        if (!options.signal.aborted) throw error;
        text.finish(`Stopped after ${plural(count, "token")}.`);
    }
    return written;
}

function countRecords(read: readonly number[], times: CallTimes): void {
    if (!opened) return;
    const { stats } = opened.model;
    opened.picture.light(opened.origins.divide(read, opened.stats, stats), performance.now());
    Object.assign(opened, { stats, times });
    canvas.changed();
    paint();
}

/** Keep the two messages of a turn. */
function endTurn(question: Message, answer: string): void {
    messages.push(question, { role: "assistant", content: answer });
    if (promptBox.value === question.content) promptBox.value = "";
}

async function runSelftest(): Promise<void> {
    if (!opened || running) return;
    const { model } = opened;
    const verdict = element("verdict", HTMLParagraphElement);
    const call = (running = new AbortController());
    showFailure(undefined);
    verdict.className = "";
    verdict.textContent = "The self-test runs …";
    showState();
    try {
        showVerdict(await model.selftest({ signal: call.signal }));
    } catch (error) {
        verdict.textContent = call.signal.aborted ? "The self-test was stopped." : "";
        if (!call.signal.aborted) fail(error, () => void runSelftest());
    }
    opened.stats = model.stats;
    running = undefined;
    paint();
    showState();
}

function textPrompt(model: Model, written: string): Prompt {
    return model.hasTokenizer ? { text: written } : { ids: readTokenIds(written, model.stats.vocabSize) };
}

function isChat(): boolean {
    return opened?.model.hasChatTemplate === true && new FormData(form).get("mode") === "chat";
}

/** Show an error, and what to do. */
function fail(error: unknown, again?: () => void): void {
    if (again) retry = again;
    showFailure(failureText(error), again !== undefined);
}

/** Mark the field that an error is about, and go to it; undefined: no field. */
function markField(error: unknown): void {
    for (const marked of form.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
    if (!(error instanceof FieldError)) return;
    const field = form.querySelector<HTMLElement>(`[name="${error.field}"], #${error.field}`);
    const folded = field?.closest("details");
    if (folded) folded.open = true;
    field?.setAttribute("aria-invalid", "true");
    field?.focus();
}

/** Enable what can be done now. */
function showState(): void {
    const isFree = opened !== undefined && running === undefined;
    generateButton.disabled = selftestButton.disabled = !isFree;
    stopButton.disabled = opened === undefined || running === undefined;
    clearButton.hidden = !isChat();
    clearButton.disabled = !isFree;
    element("modes", HTMLFieldSetElement).disabled = !isFree;
    element("machine", HTMLFieldSetElement).disabled = opened !== undefined && running !== undefined;
    const [label, example] = promptTexts();
    element("prompt-label", HTMLLabelElement).textContent = label;
    promptBox.placeholder = example;
}

/** Return the label of the prompt, and an example of what to type. */
function promptTexts(): readonly [string, string] {
    if (opened?.model.hasTokenizer === false) return ["Prompt: token ids, because there is no tokenizer", "1 2 3"];
    return isChat() ? ["Message", "A question"] : ["Prompt", "The beginning of a text"];
}

/** Show the numbers at the next frame. */
function paint(): void {
    if (paints) return;
    paints = true;
    requestAnimationFrame(() => {
        paints = false;
        if (!opened) return;
        showStats(opened.stats, opened.times);
        const picture = opened.picture.text(opened.origins.used.size);
        element("picture", HTMLCanvasElement).setAttribute("aria-label", picture);
    });
}

/** Return the texts of the fields in the settings. */
function storedTexts(): Record<string, string> {
    const fields = element("sampling", HTMLFieldSetElement).querySelectorAll("input");
    return Object.fromEntries([...fields].map((field) => [field.name, field.value]));
}

function store(): void {
    const texts = { ...storedTexts(), provider: provider.value, prefetch: prefetch.value };
    try {
        localStorage.setItem(STORED, JSON.stringify(texts));
    } catch {
        // The browser stores nothing for this page, so the next visit begins with the defaults.
    }
}

function restore(): void {
    let stored: string | null = null;
    try {
        stored = localStorage.getItem(STORED);
    } catch {
        return; // as in `store`
    }
    const texts = readStored(stored);
    for (const field of element("sampling", HTMLFieldSetElement).querySelectorAll("input")) {
        field.value = texts[field.name] ?? "";
    }
    for (const [select, value] of [
        [provider, texts.provider],
        [prefetch, texts.prefetch],
    ] as const) {
        if ([...select.options].some((option) => option.value === value && !option.disabled)) select.value = value!;
    }
}

function clearChat(): void {
    messages = [];
    text.clear();
    promptBox.focus();
}

function stop(): void {
    if (opened) running?.abort();
}

function listen(): void {
    form.addEventListener("submit", (event) => {
        event.preventDefault();
        void generate();
    });
    promptBox.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void generate();
    });
    document.addEventListener("keydown", (event) => {
        if (event.key === "Escape") stop();
    });
    stopButton.addEventListener("click", stop);
    clearButton.addEventListener("click", clearChat);
    selftestButton.addEventListener("click", () => void runSelftest());
    retryButton.addEventListener("click", () => {
        promptBox.focus(); // the button disappears
        retry();
    });
    element("modes", HTMLFieldSetElement).addEventListener("change", () => {
        clearChat();
        showState();
    });
    element("sampling", HTMLFieldSetElement).addEventListener("change", store);
    for (const select of [provider, prefetch]) {
        select.addEventListener("change", () => {
            store();
            messages = [];
            text.clear();
            void open();
        });
    }
}

/** Browsers have WebGPU's interface also where no graphics processor can be used. */
async function hasWebGpu(): Promise<boolean> {
    if (!("gpu" in navigator)) return false;
    try {
        return (await navigator.gpu.requestAdapter()) !== null;
    } catch {
        return false;
    }
}

async function start(): Promise<void> {
    if (!(await hasWebGpu())) {
        const option = provider.querySelector<HTMLOptionElement>('[value="webgpu"]')!;
        option.disabled = true;
        option.text = "WebGPU (not in this browser or on this machine)";
    }
    restore();
    listen();
    showState();
    await keepPageOffline();
    await open();
}

void start();
