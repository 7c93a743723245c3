import { afterAll, describe, expect, it } from "vitest";

import { onnxruntimeNode } from "../../../src/backends/onnxruntime-node.js";
import { MolkvError } from "../../../src/errors.js";
import { type LoadedModel, loadModel } from "../../../src/runtime/load-model.js";
import type { BatchState } from "../../../src/runtime/sequences.js";
import { nodeFolder } from "../../../src/sources/node-folder.js";
import { bundlePath, type Case, cases, cpuBundles, limits, type Step } from "../support/run-cases.js";

const models = new Map<string, Promise<LoadedModel>>();

function model(name: string): Promise<LoadedModel> {
    const found = models.get(name) ?? loadModel(nodeFolder(bundlePath(name)), onnxruntimeNode({ threads: 1 }));
    models.set(name, found);
    return found;
}

afterAll(async () => {
    for (const loading of models.values()) await (await loading).close();
});

const bundles = cpuBundles();

function casesOf(kind: string, bundle: string): Case[] {
    return cases.filter((one) => one.kind === kind && one.bundle === bundle);
}

function greedy(logits: Float32Array, row: number, vocabSize: number): number {
    const own = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
    return own.indexOf(own.reduce((largest, logit) => Math.max(largest, logit)));
}

async function runStep(state: BatchState, step: Step): Promise<Float32Array | number | undefined> {
    switch (step.do) {
        case "prefill":
            return state.prefill(step.sequence, step.ids);
        case "decode":
            return state.decode(step.ids, step.active);
        case "rewind":
            await state.rewind(step.sequence, step.length);
            return undefined;
        case "fork":
            return state.fork(step.sequence);
    }
}

function checkStep(step: Step, found: Float32Array | number | undefined, vocabSize: number, limit: number): void {
    if (step.do === "fork") expect(found).toBe(step.copy);
    if (!(found instanceof Float32Array)) return;
    const expected = step.do === "prefill" ? [step.logit] : step.logits;
    expected.forEach((one, row) => {
        if (one === null) return;
        const [id, logit] = one;
        // Within the limit, another token may be the likeliest one.
        expect(Math.abs(found[row * vocabSize + id]! - logit)).toBeLessThanOrEqual(limit);
    });
}

/** Continue the prompts of a case of kind "tokens" greedily. */
async function continueGreedily(loaded: LoadedModel, one: Case): Promise<{ ids: number[]; finish: string }[]> {
    const { vocabSize } = loaded.config;
    const state = loaded.sequences(one.prompts.length);
    const texts = one.prompts.map(() => ({ ids: [] as number[], finish: "" }));
    const take = (i: number, id: number): void => {
        const text = texts[i]!;
        text.ids.push(id);
        const run = one.prompts[i]!.length + text.ids.length - 1;
        if (one.stop_ids?.includes(id)) text.finish = "stop";
        else if (text.ids.length === one.max_new_tokens || run === state.maxLength) text.finish = "length";
    };
    for (const [i, prompt] of one.prompts.entries()) take(i, greedy(await state.prefill(i, prompt), 0, vocabSize));
    while (texts.some(({ finish }) => finish === "")) {
        const active = texts.map(({ finish }) => finish === "");
        const logits = await state.decode(
            texts.map(({ ids }) => ids.at(-1)!),
            active,
        );
        active.forEach((goes, i) => {
            if (goes) take(i, greedy(logits, i, vocabSize));
        });
    }
    state.release();
    return texts;
}

function isGreedy({ sampling, lookup, logprobs }: Case): boolean {
    return lookup === undefined && logprobs === undefined && Object.keys(sampling).join() === "seed";
}

describe.each(bundles)("the bundle %s", (bundle) => {
    it("gives the expected logits in the steps of sequences", async () => {
        const loaded = await model(bundle);
        for (const { batch_size, steps } of casesOf("sequences", bundle)) {
            const state = loaded.sequences(batch_size);
            for (const step of steps) {
                const { lengths } = state;
                if (step.error === undefined) {
                    checkStep(step, await runStep(state, step), loaded.config.vocabSize, limits[bundle]!);
                } else {
                    const error: unknown = await runStep(state, step).catch((reason: unknown) => reason);
                    expect(error).toBeInstanceOf(MolkvError);
                    expect(error).toMatchObject({ kind: step.error });
                    expect(state.lengths).toEqual(lengths);
                }
            }
            state.release();
        }
    });

    it("continues prompts greedily with the expected tokens", async () => {
        const loaded = await model(bundle);
        const chosen = casesOf("tokens", bundle).filter(isGreedy);
        expect(chosen.length).toBeGreaterThan(0);
        for (const one of chosen) {
            const texts = await continueGreedily(loaded, one);
            one.expected.forEach(({ ids, compared, finish }, i) => {
                expect(texts[i]!.ids.slice(0, compared), one.name).toEqual(ids.slice(0, compared));
                if (compared === ids.length) expect(texts[i]!.finish, one.name).toBe(finish);
            });
        }
    });

    it("gives the same logits in prefill, decode, after a rewind and after save and restore", async () => {
        const loaded = await model(bundle);
        const { vocabSize, maxPositionEmbeddings } = loaded.config;
        const ids = Array.from({ length: Math.min(140, maxPositionEmbeddings) }, (_, i) => (i * i + 7) % vocabSize);
        const state = loaded.sequences(2);
        const all = (await state.prefill(0, ids, { allLogits: true })).slice();
        const compare = (logits: Float32Array, row: number, position: number): void => {
            for (let id = 0; id < vocabSize; id++) {
                const difference = Math.abs(logits[row * vocabSize + id]! - all[position * vocabSize + id]!);
                expect(difference, `position ${position}`).toBeLessThanOrEqual(2 * limits[bundle]!);
            }
        };
        for (const [position, id] of ids.entries()) {
            compare(await state.decode([0, id], [false, true]), 1, position);
        }
        await state.rewind(1, 11);
        compare(await state.prefill(1, ids.slice(11, 20)), 0, 19);
        const saved = await state.save(0);
        const restored = loaded.sequences(1);
        await restored.restore(0, ids, saved);
        await restored.rewind(0, ids.length - 1);
        compare(await restored.decode([ids.at(-1)!]), 0, ids.length - 1);
        state.release();
        restored.release();
    });
});
