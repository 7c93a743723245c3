import { afterEach, describe, expect, test } from "vitest";

import type { Model } from "../../../src/api.js";
import { BundleError, ProviderError, RequestError } from "../../../src/errors.js";
import { Model as Models } from "../../../src/model.js";
import type { GenerateOptions, Token } from "../../../src/options.js";
import { nodeFolder } from "../../../src/sources/node-folder.js";
import { onnxruntimeNode } from "../../../src/backends/onnxruntime-node.js";
import { type Hooks, idsOf, openHooked, type Place, places } from "../support/hooked-model.js";
import { bundlePath } from "../support/run-cases.js";

const PROMPT = [17, 56, 35, 36, 28];
const AFTER_PROMPT = [31, 28, 38, 44]; // the conformance case molkv/stop
const GREEDY: GenerateOptions = { stopIds: [], sampling: {}, maxNewTokens: 4 };
const reason = new Error("enough");

describe.each(places)("a model in the place %s", (place) => {
    const open: Model[] = [];

    async function opened(bundle: string, hooks: Hooks = {}): Promise<Model> {
        const model = await openHooked(bundle, hooks, place);
        open.push(model);
        return model;
    }

    afterEach(async () => {
        for (const model of open.splice(0)) await model.close();
    });

    test("counts tokens, seconds and records", async () => {
        const rows: number[] = [];
        const model = await opened("molkv", { read: (read) => void rows.push(...read) });
        expect(model.stats).toMatchObject({
            promptTokens: 0,
            promptSeconds: 0,
            generatedTokens: 0,
            generatedSeconds: 0,
        });
        await idsOf(model.stream([PROMPT, [1, 2]], GREEDY));
        // The first token of each text comes with its prompt; then there are three steps for both texts.
        expect(model.stats).toMatchObject({ promptTokens: 7, generatedTokens: 6, recordsRead: rows.length });
        expect(new Set(rows).size).toBe(rows.length);
        expect(model.stats.promptSeconds).toBeGreaterThan(0);
        expect(model.stats.generatedSeconds).toBeGreaterThan(0);
        const session = await model.session();
        await idsOf(session.stream(PROMPT, GREEDY));
        expect(model.stats).toMatchObject({ promptTokens: 12, generatedTokens: 9 });
        // The last token of the first call is run with the second prompt.
        await idsOf(session.stream([7], GREEDY));
        expect(model.stats).toMatchObject({ promptTokens: 14, generatedTokens: 12 });
        await session.rewind(4);
        await idsOf(session.stream([8], GREEDY));
        expect(model.stats).toMatchObject({ promptTokens: 15, generatedTokens: 15, vocabSize: 61, contextLength: 160 });
    });

    test("releases its states when an iterator ends, fails, is left or aborted", async () => {
        const hooks: Hooks = {};
        const model = await opened("molkv", hooks);
        await idsOf(model.stream([PROMPT], GREEDY));
        expect(hooks.caches).toBe(0);
        for await (const { id } of model.stream([PROMPT, [1]], GREEDY)) {
            expect(id).toBe(31);
            expect(hooks.caches).toBe(1);
            break;
        }
        expect(hooks.caches).toBe(0);
        const controller = new AbortController();
        const aborted = model.stream([PROMPT], { ...GREEDY, signal: controller.signal });
        await aborted.next();
        controller.abort(reason);
        await expect(aborted.next()).rejects.toBe(reason);
        expect(hooks.caches).toBe(0);
        hooks.logits = (logits) => void logits.fill(NaN);
        await expect(idsOf(model.stream([PROMPT], GREEDY))).rejects.toThrow(/position 5 of sequence 0.*NaN/);
        await expect(idsOf(model.stream([PROMPT], GREEDY))).rejects.toThrow(ProviderError);
        hooks.logits = undefined;
        expect(hooks.caches).toBe(0);
        expect(await idsOf(model.stream([PROMPT], GREEDY))).toEqual(AFTER_PROMPT);
        expect((await model.selftest()).passed).toBe(true);
        expect(hooks.caches).toBe(0);
    });

    test("lets several iterators take turns, also if the caller does not wait", async () => {
        const model = await opened("molkv");
        const streams = [model.stream([PROMPT], GREEDY), model.stream([[1, 2]], GREEDY)];
        const items = streams.flatMap((stream) => [
            stream.next(),
            stream.next(),
            stream.next(),
            stream.next(),
            stream.next(),
        ]);
        const ids = (await Promise.all(items)).map(({ value }) => (value as Token | undefined)?.id);
        expect(ids.slice(0, 5)).toEqual([...AFTER_PROMPT, undefined]);
        expect(ids.slice(5, 9)).toEqual(await idsOf(model.stream([[1, 2]], GREEDY)));
    });

    test("ends each kind of call with the reason of the signal", async () => {
        const model = await opened("molkv");
        const signal = AbortSignal.abort(reason);
        const sequences = await model.sequences(1);
        await sequences.prefill(0, [1]);
        await expect(model.stream([PROMPT], { signal }).next()).rejects.toBe(reason);
        await expect(model.selftest({ signal })).rejects.toBe(reason);
        await expect(sequences.prefill(0, [1], { signal })).rejects.toBe(reason);
        await expect(sequences.decode([1], { signal })).rejects.toBe(reason);
        expect(sequences.lengths).toEqual([1]);
        const running = new AbortController();
        const shares: number[] = [];
        const onProgress = (done: number): void => {
            shares.push(done);
            // The reason may be an error of this package, which is no failure of the test.
            running.abort(new RequestError("no more"));
        };
        await expect(model.selftest({ signal: running.signal, onProgress })).rejects.toThrow("no more");
    });

    test("ends with the error that a listener throws", async () => {
        const fails = (): void => {
            throw reason;
        };
        const hooks: Hooks = {};
        const model = await opened("molkv", hooks);
        await expect(model.selftest({ onProgress: fails })).rejects.toBe(reason);
        expect(await idsOf(model.stream([PROMPT], GREEDY))).toEqual(AFTER_PROMPT);
        const failed: Hooks = {};
        await expect(openHooked("molkv", failed, place, { onProgress: fails })).rejects.toBe(reason);
    });

    test("closes once, after the running step; other calls then end with an error", async () => {
        const hooks: Hooks = {};
        const model = await openHooked("bytes", hooks, place);
        const [session, sequences] = [await model.session(), await model.sequences(2)];
        const stream = model.stream([[5, 6]], GREEDY);
        await stream.next();
        const [[ended]] = await Promise.all([Promise.allSettled([stream.next()]), model.close(), model.close()]);
        await model.close();
        expect([hooks.graphReleases, hooks.sourceCloses]).toEqual([1, 1]);
        if (ended.status === "rejected") expect(ended.reason).toBeInstanceOf(RequestError);
        for (const call of [
            () => stream.next().then(() => model.text("a").next()),
            () => model.text("a").next(),
            () => model.stream([[1]]).next(),
            () => model.chat([{ role: "user", content: "a" }]).next(),
            () => model.renderChat([{ role: "user", content: "a" }]),
            () => model.encode("a"),
            () => model.decode([1]),
            () => model.session(),
            () => model.sequences(1),
            () => model.selftest(),
            () => session.stream([1]).next(),
            () => session.fork(),
            () => sequences.prefill(0, [1]),
            () => sequences.fork(0),
        ]) {
            await expect(call()).rejects.toThrow(RequestError);
        }
        await session.close();
        await sequences.close();
        if (place === "thread") expect(hooks.caches).toBe(0);
    });

    test("closes sequences once, and refuses their later calls", async () => {
        const hooks: Hooks = {};
        const model = await opened("molkv", hooks);
        const sequences = await model.sequences(2, { maxLength: 20 });
        expect([sequences.batchSize, sequences.maxLength, sequences.lengths]).toEqual([2, 20, [0, 0]]);
        const calls = [sequences.prefill(0, PROMPT), sequences.close(), sequences.close()];
        const [logits] = await Promise.allSettled(calls);
        if (logits!.status === "rejected") expect(logits!.reason).toBeInstanceOf(RequestError);
        expect(hooks.caches).toBe(0);
        await expect(sequences.prefill(0, [1])).rejects.toThrow(RequestError);
        await expect(sequences.decode([1, 1])).rejects.toThrow(RequestError);
        await expect(sequences.rewind(0, 0)).rejects.toThrow(RequestError);
        await expect(sequences.fork(0)).rejects.toThrow(RequestError);
    });

    test("refuses arguments of wrong types and values", async () => {
        const model = await opened("bytes");
        const sequences = await model.sequences(2, { maxLength: 8 });
        await sequences.prefill(0, [1]);
        const wrong = <T>(...values: unknown[]): T[] => values as T[];
        const options = [
            ...wrong<GenerateOptions>(null, "x", 5),
            ...wrong(0, -1, 1.5, NaN, "4", [], 2n).map((maxNewTokens) => ({ maxNewTokens })),
            ...wrong(-1, 281, NaN, "1", null).map((logprobs) => ({ logprobs })),
            ...wrong(5, "x", {}, [""], [5], [null], ["\ud800"], Array(17).fill("a"), ["a".repeat(1001)]).map(
                (stop) => ({ stop }),
            ),
            ...wrong(5, "x", {}, [-1], ["1"], [NaN], [null]).map((stopIds) => ({ stopIds })),
            ...wrong("x", 5, {}, true).map((signal) => ({ signal })),
            ...wrong("x", 5, null).map((sampling) => ({ sampling })),
            ...wrong(
                { temperature: NaN },
                { temperature: "1" },
                { topK: 1.5 },
                { topP: 0 },
                { minP: 2 },
                { seed: -1 },
                { seed: "1" },
                { seed: 2 ** 60 },
                { seed: 1n << 64n },
                { repetitionPenalty: 0 },
                { presencePenalty: 3 },
                { frequencyPenalty: Infinity },
                { logitBias: { 280: 1 } },
                { logitBias: { x: 1 } },
                { logitBias: 5 },
                { logitBias: { 1: "1" } },
                { logitBias: { 1: NaN } },
                { logitBias: new Map([[1, 1]]) },
                { logitBias: [1] },
            ).map((sampling) => ({ sampling })),
        ] as GenerateOptions[];
        const calls: (() => Promise<unknown>)[] = [
            ...options.map((each) => () => model.stream([[1]], each).next()),
            ...options.map((each) => () => model.text("a", each).next()),
            ...wrong<number[][]>(
                null,
                undefined,
                5,
                "x",
                {},
                [],
                [[]],
                [null],
                [5],
                ["x"],
                [[280]],
                [[NaN]],
                [["1"]],
                [, [1]],
                [[1], Array(49).fill(1)],
            ).map((prompts) => () => model.stream(prompts).next()),
            ...wrong<string>(null, undefined, 5, ["a"], {}, "\ud800").flatMap((text) => [
                () => model.encode(text),
                () => model.text(text).next(),
            ]),
            ...wrong<object>(null, "x", 5).map((each) => () => model.encode("a", each)),
            ...wrong<number[]>(null, undefined, 5, "x", [NaN], ["1"], [280]).map((ids) => () => model.decode(ids)),
            ...wrong<never>(null, undefined, 5, "x", {}, [], [5], [null]).flatMap((messages) => [
                () => model.renderChat(messages),
                () => model.chat(messages).next(),
            ]),
            ...wrong<object>(null, "x", 5, { tools: 5 }, { addGenerationPrompt: "no" }).map(
                (each) => () => model.renderChat([{ role: "user", content: "a" }], each),
            ),
            ...wrong<number>(null, undefined, 0, -1, 1.5, NaN, "1", 2 ** 40).map((size) => () => model.sequences(size)),
            ...wrong<object>(null, 5, { maxLength: 0 }, { maxLength: "1" }, { maxLength: 49 }).map(
                (each) => () => model.sequences(1, each),
            ),
            ...wrong<object>(null, 5, { signal: 5 }, { onProgress: 5 }).map((each) => () => model.selftest(each)),
            ...wrong<number>(null, undefined, -1, 2, NaN, "0").flatMap((sequence) => [
                () => sequences.prefill(sequence, [1]),
                () => sequences.rewind(sequence, 0),
                () => sequences.fork(sequence),
            ]),
            ...wrong<number[]>(null, undefined, 5, "x", {}, [], [280], [NaN], ["1"], Array(8).fill(1)).map(
                (ids) => () => sequences.prefill(0, ids),
            ),
            ...wrong<number[]>(null, undefined, 5, "xy", {}, [], [1], [280, 1], [NaN, 1], ["1", 1]).map(
                (ids) => () => sequences.decode(ids),
            ),
            ...wrong<object>(null, 5, { active: 5 }, { active: "xy" }, { active: [true] }, { signal: 5 }).map(
                (each) => () => sequences.decode([1, 1], each),
            ),
            ...wrong<number>(null, undefined, -1, 2, NaN, "0").map((length) => () => sequences.rewind(0, length)),
        ];
        const found: string[] = [];
        for (const call of calls) {
            // A method must not throw at once, either.
            const error: unknown = await Promise.resolve()
                .then(() => call())
                .then(
                    () => "no error",
                    (each: unknown) => each,
                );
            if (!(error instanceof RequestError)) found.push(`${String(call)}: ${String(error)}`);
        }
        expect(found).toEqual([]);
        expect(sequences.lengths).toEqual([1, 0]);
        for await (const token of model.stream([Array<number>(48).fill(1)])) expect(token.finish).toBeDefined();
    });

    test("reads the tokenizer again after a failure", async () => {
        let fails = true;
        const load = (name: string): void => {
            if (fails && /tokenizer|chat/.test(name)) throw new BundleError("the network is down");
        };
        const model = await opened("bytes", { load });
        await expect(model.encode("a")).rejects.toThrow("the network is down");
        await expect(model.renderChat([{ role: "user", content: "a" }])).rejects.toThrow("the network is down");
        fails = false;
        expect(await model.encode("a")).toEqual([64]);
        expect(await model.renderChat([{ role: "user", content: "a" }])).toContain("<|user|>a");
    });

    test("adds special tokens only at the start of a session", async () => {
        const model = await opened("byte-fallback");
        const [first, later] = [await model.encode("owl"), await model.encode("owl", { addSpecialTokens: false })];
        expect(first).toEqual([1, ...later]);
        const session = await model.session();
        await session.text("owl", { ...GREEDY, maxNewTokens: 1 }).next();
        expect(session.ids.slice(0, -1)).toEqual(first);
        const { ids } = session;
        await session.text("owl", { ...GREEDY, maxNewTokens: 1 }).next();
        expect(session.ids.slice(0, -1)).toEqual([...ids, ...later]);
    });
});

test("refuses to open without a source or a backend", async () => {
    const source = nodeFolder(bundlePath("molkv"));
    const backend = onnxruntimeNode();
    for (const [from, options] of [
        ["bundle", { backend }],
        [null, { backend }],
        [source, undefined],
        [source, null],
        [source, {}],
        [source, { backend: "cpu" }],
        [source, { backend, worker: true }],
        [source, { backend, signal: 5 }],
        [source, { backend, onProgress: 5 }],
        [source, { backend, prefillChunk: 0 }],
        [source, { backend, prefillChunk: "1" }],
    ] as [never, never][]) {
        await expect(Models.open(from, options)).rejects.toThrow(RequestError);
    }
});

test.each<Place>(["thread", "worker"])(
    "ends the opening with the reason of the signal in the place %s",
    async (place) => {
        const controller = new AbortController();
        const opening = openHooked(
            "molkv",
            {
                load: () => {
                    controller.abort(reason);
                },
            },
            place,
            { signal: controller.signal },
        );
        await expect(opening).rejects.toBe(reason);
        await expect(openHooked("molkv", {}, place, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    },
);
