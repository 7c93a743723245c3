/** The conformance suite for every platform: runs the cases of runtimes/conformance/cases.json with a `Model`. */

import type { Model, Sequences } from "../../src/api.js";
import { MolkvError, type ErrorKind } from "../../src/errors.js";
import type { GenerateOptions, Sampling, Token } from "../../src/options.js";
import type { Case, CasesFile, CaseSampling, Expected, Generation, Patch, Step } from "./cases.js";

/** What a platform gives the suite. */
export interface Platform {
    /** Return a file of runtimes/conformance, such as "sessions/molkv.safetensors". */
    read(path: string): Promise<Uint8Array>;
    /** Open a bundle of the suite. */
    open(bundle: string): Promise<Model>;
    /** Open a bundle that has these files. */
    openFiles(files: ReadonlyMap<string, Uint8Array>): Promise<Model>;
}

type CaseOf<Kind extends Case["kind"]> = Extract<Case, { kind: Kind }>;

export interface Outcome {
    readonly name: string;
    readonly result: "ok" | "FAIL" | "skip";
    readonly why: string;
}

/** Run all cases, and yield what becomes of each. `skip` returns why a case is left out, or "". */
export async function* runSuite(platform: Platform, skip: (each: Case) => string = () => ""): AsyncGenerator<Outcome> {
    const { limits, cases } = JSON.parse(new TextDecoder().decode(await platform.read("cases.json"))) as CasesFile;
    const suite = new Suite(platform, limits);
    for (const each of cases) {
        const skipped = reasonToSkip(each) || skip(each);
        if (skipped) {
            yield { name: each.name, result: "skip", why: skipped };
            continue;
        }
        const why = await suite.run(each).catch((error: unknown) => `unexpected ${String(error)}`);
        yield { name: each.name, result: why ? "FAIL" : "ok", why };
    }
    await suite.close();
}

/** Return the line of an outcome. */
export function line({ name, result, why }: Outcome): string {
    return why ? `${result} ${name}: ${why}` : `${result} ${name}`;
}

/** Return the last line: how many cases passed. */
export function summary(outcomes: readonly Outcome[]): string {
    const count = (result: string): number => outcomes.filter((each) => each.result === result).length;
    return `${count("ok")} of ${outcomes.length} cases passed, ${count("skip")} skipped`;
}

function reasonToSkip(each: Case): string {
    if (each.bundle === "coreml" || each.bundle === "nnapi") {
        return "static graphs";
    }
    return "lookup" in each ? "prompt lookup" : "";
}

class Suite {
    readonly #platform: Platform;
    readonly #limits: Readonly<Record<string, number>>;
    readonly #open = new Map<string, Promise<Model>>();

    constructor(platform: Platform, limits: Readonly<Record<string, number>>) {
        this.#platform = platform;
        this.#limits = limits;
    }

    /** Run a case. Return a description of the failure, or "" if the case passed. */
    async run(each: Case): Promise<string> {
        switch (each.kind) {
            case "golden":
                return this.#golden(each);
            case "tokens":
                return this.#tokens(await this.#model(each.bundle), each, each.expected, this.#limits[each.bundle]!);
            case "text":
                return this.#text(each);
            case "sequences":
                return this.#sequences(each);
            case "calls":
                return this.#calls(each);
            case "session":
                return this.#session(each);
            case "session-refused":
                return this.#sessionRefused(each);
            case "chat":
                return this.#chat(each);
            case "refused":
                return this.#refused(each);
            case "damage":
                return this.#damage(each);
        }
    }

    async close(): Promise<void> {
        for (const opening of this.#open.values()) {
            // A model that could not be opened has failed its cases.
            const model = await opening.catch(() => undefined);
            await model?.close();
        }
    }

    #model(bundle: string): Promise<Model> {
        let model = this.#open.get(bundle);
        if (!model) {
            model = this.#platform.open(bundle);
            this.#open.set(bundle, model);
        }
        return model;
    }

    async #golden({ bundle }: CaseOf<"golden">): Promise<string> {
        const result = await (await this.#model(bundle)).selftest();
        return result.passed ? "" : result.failures.join("; ") || "did not pass";
    }

    async #tokens(model: Model, call: Generation, expected: readonly Expected[], limit: number): Promise<string> {
        const found: Token[][] = call.prompts.map(() => []);
        for await (const token of model.stream(call.prompts, generateOptions(call))) {
            found[token.sequence]!.push(token);
        }
        return expected
            .map((each, index) => difference(found[index]!, each, index, limit))
            .filter(Boolean)
            .join("; ");
    }

    async #text(each: CaseOf<"text">): Promise<string> {
        const model = await this.#model(each.bundle);
        const ids = await model.encode(each.prompt);
        if (!same(ids, each.prompt_ids)) {
            return `the prompt has the ids ${ids.join()}, expected ${each.prompt_ids.join()}`;
        }
        const options = { ...generateOptions({ ...each, prompts: [] }), stopIds: undefined };
        const tokens: Token[] = [];
        for await (const token of model.stream([ids], options)) {
            tokens.push(token);
        }
        const pieces: string[] = [];
        for await (const piece of model.text(each.prompt, options)) {
            pieces.push(piece);
        }
        const whole = each.expected.compared === each.expected.ids.length;
        if (whole && JSON.stringify(pieces) !== JSON.stringify(each.expected.pieces)) {
            return `the pieces are ${JSON.stringify(pieces)}, expected ${JSON.stringify(each.expected.pieces)}`;
        }
        return difference(tokens, each.expected, 0, 0);
    }

    async #sequences(each: CaseOf<"sequences">): Promise<string> {
        const sequences = await (await this.#model(each.bundle)).sequences(each.batch_size);
        try {
            for (const [index, step] of each.steps.entries()) {
                const wrong = step.error
                    ? await expectError(step.error, () => runStep(sequences, step))
                    : this.#stepDifference(step, await runStep(sequences, step), this.#limits[each.bundle]!);
                if (wrong) {
                    return `step ${index} (${step.do}): ${wrong}`;
                }
            }
        } finally {
            await sequences.close();
        }
        return "";
    }

    #stepDifference(step: Step, found: Float32Array | number | undefined, limit: number): string {
        if (step.do === "fork") {
            return found === step.copy ? "" : `found the copy ${String(found)}, expected ${step.copy}`;
        }
        if (step.do === "rewind") {
            return "";
        }
        const logits = found as Float32Array;
        const expected = step.do === "prefill" ? [step.logit] : step.logits;
        const vocabulary = logits.length / expected.length;
        for (const [row, one] of expected.entries()) {
            if (one && !(Math.abs(logits[row * vocabulary + one[0]]! - one[1]) <= limit)) {
                return `found the logit ${logits[row * vocabulary + one[0]]!}, expected ${one[1]} of token ${one[0]}`;
            }
        }
        return "";
    }

    async #calls(each: CaseOf<"calls">): Promise<string> {
        const model = await this.#platform.open(each.bundle);
        try {
            for (const [index, call] of each.calls.entries()) {
                const wrong = await this.#tokens(model, call, call.expected, this.#limits[each.bundle]!);
                if (wrong) {
                    return `call ${index}: ${wrong}`;
                }
            }
        } finally {
            await model.close();
        }
        return "";
    }

    async #session(each: CaseOf<"session">): Promise<string> {
        const model = await this.#model(each.bundle);
        let saved = await this.#platform.read(`sessions/${each.session}`);
        for (const name of [each.session, "the session that this driver saved"]) {
            const session = await model.restore(saved);
            if (!same(session.ids, each.ids)) {
                return `${name} has the ids ${session.ids.join()}, expected ${each.ids.join()}`;
            }
            const tokens: Token[] = [];
            for await (const token of session.stream(each.then, generateOptions({ ...each, prompts: [] }))) {
                tokens.push(token);
            }
            const wrong = difference(tokens, each.expected, 0, this.#limits[each.bundle]!);
            if (wrong) {
                return `${name}: ${wrong}`;
            }
            await session.rewind(each.ids.length);
            saved = await session.save();
            await session.close();
        }
        return "";
    }

    async #sessionRefused(each: CaseOf<"session-refused">): Promise<string> {
        const model = await this.#model(each.bundle);
        const saved = each.patches.reduce(patched, await this.#platform.read(`sessions/${each.session}`));
        return expectError(each.error, () => model.restore(saved));
    }

    async #chat(each: CaseOf<"chat">): Promise<string> {
        const model = await this.#model(each.bundle);
        const render = (): Promise<string> =>
            model.renderChat(each.messages, {
                tools: each.tools ?? undefined,
                addGenerationPrompt: each.add_generation_prompt,
            });
        if (each.error) {
            return expectError(each.error, render);
        }
        const text = await render();
        const ids = await model.encode(text, { addSpecialTokens: false });
        const right = text === each.expected.text && same(ids, each.expected.ids);
        return right ? "" : `found ${JSON.stringify({ text, ids })}, expected ${JSON.stringify(each.expected)}`;
    }

    async #refused(each: CaseOf<"refused">): Promise<string> {
        const model = await this.#model(each.bundle);
        return expectError(each.error, () =>
            drain(each.text === undefined ? model.stream(each.prompts, generateOptions(each)) : model.text(each.text)),
        );
    }

    async #damage(each: CaseOf<"damage">): Promise<string> {
        const manifest = await this.#platform.read(`bundles/${each.bundle}/manifest.json`);
        const listed = JSON.parse(new TextDecoder().decode(manifest)) as { files: Record<string, unknown> };
        const files = new Map([["manifest.json", manifest]]);
        for (const name of Object.keys(listed.files)) {
            files.set(name, await this.#platform.read(`bundles/${each.bundle}/${name}`));
        }
        for (const patch of each.patches) {
            if (patch.remove) {
                files.delete(patch.file);
            } else if (patch.from !== undefined) {
                files.set(patch.file, await this.#platform.read(`bundles/${patch.from}/${patch.file}`));
            } else {
                files.set(patch.file, patched(files.get(patch.file)!, patch));
            }
        }
        return expectError(each.error, async () => {
            const model = await this.#platform.openFiles(files);
            await drain(model.stream(each.prompts, { maxNewTokens: 3 })).finally(() => model.close());
        });
    }
}

function runStep(sequences: Sequences, step: Step): Promise<Float32Array | number | undefined> {
    switch (step.do) {
        case "prefill":
            return sequences.prefill(step.sequence, step.ids);
        case "decode":
            return sequences.decode(step.ids, { active: step.active });
        case "rewind":
            return sequences.rewind(step.sequence, step.length).then(() => undefined);
        case "fork":
            return sequences.fork(step.sequence);
    }
}

function patched(content: Uint8Array, patch: Patch): Uint8Array {
    const inserted = Uint8Array.from((patch.insert!.match(/../g) ?? []).map((digits) => parseInt(digits, 16)));
    const rest = content.subarray(patch.offset! + patch.delete!);
    const whole = new Uint8Array(patch.offset! + inserted.length + rest.length);
    whole.set(content.subarray(0, patch.offset));
    whole.set(inserted, patch.offset);
    whole.set(rest, patch.offset! + inserted.length);
    return whole;
}

function generateOptions(call: Generation): GenerateOptions {
    return {
        maxNewTokens: call.max_new_tokens,
        sampling: call.sampling && samplingOf(call.sampling),
        stopIds: call.stop_ids ?? [],
        stop: call.stop,
        logprobs: call.logprobs,
    };
}

function samplingOf(fields: CaseSampling): Sampling {
    return {
        temperature: fields.temperature,
        topK: fields.top_k,
        topP: fields.top_p,
        minP: fields.min_p,
        repetitionPenalty: fields.repetition_penalty,
        presencePenalty: fields.presence_penalty,
        frequencyPenalty: fields.frequency_penalty,
        logitBias: fields.logit_bias,
        seed: BigInt(fields.seed),
    };
}

/** Compare tokens, and log-probabilities if they are expected, up to the first token that is not compared. */
function difference(found: readonly Token[], expected: Expected, sequence: number, limit: number): string {
    const { compared } = expected;
    const ids = found.map(({ id }) => id);
    if (!same(ids.slice(0, compared), expected.ids.slice(0, compared))) {
        return `sequence ${sequence} continues with ${ids.join()}, expected ${expected.ids.slice(0, compared).join()}`;
    }
    if (compared === expected.ids.length && (ids.length !== compared || found.at(-1)?.finish !== expected.finish)) {
        return `sequence ${sequence}: found ${ids.join()} ${String(found.at(-1)?.finish)}, expected ${expected.ids.join()} ${expected.finish}`;
    }
    for (const [index, numbers] of (expected.logprobs ?? []).slice(0, compared).entries()) {
        const token = found[index]!;
        const own = [token.logprob!, ...(token.best ?? []).map(({ logprob }) => logprob)];
        if (own.length !== numbers.length || own.some((one, at) => !(Math.abs(one - numbers[at]!) <= 2 * limit))) {
            return `token ${index}: found the log-probabilities ${own.join()}, expected ${numbers.join()}`;
        }
    }
    return "";
}

async function expectError(kind: ErrorKind, call: () => Promise<unknown>): Promise<string> {
    try {
        await call();
    } catch (error) {
        if (error instanceof MolkvError) {
            return error.kind === kind
                ? ""
                : `found an error of kind ${error.kind}, expected ${kind}: ${error.message}`;
        }
        throw error;
    }
    return `found no error, expected an error of kind ${kind}`;
}

async function drain(items: AsyncIterable<unknown>): Promise<void> {
    const iterator = items[Symbol.asyncIterator]();
    while (!(await iterator.next()).done);
}

function same(first: readonly number[], second: readonly number[]): boolean {
    return first.length === second.length && first.every((id, index) => id === second[index]);
}
