import { describe, expect, it } from "vitest";

import { BundleError, MemoryError, RequestError } from "../../../src/errors.js";
import { BatchState } from "../../../src/runtime/sequences.js";
import { expectedLogits, fakeEngine, type FakeEngine, type Kind, VOCAB } from "../support/fake-engine.js";

const WINDOW = 5;
const KINDS: readonly Kind[] = ["molkv", "molkv-int8", "mole", "dense"];

/** Return numbers from 0 to `below` - 1 that depend only on the seed. */
function randomNumbers(seed: number): (below: number) => number {
    let state = seed;
    return (below) => {
        state = (Math.imul(1664525, state) + 1013904223) >>> 0;
        return Math.floor((state / 2 ** 32) * below);
    };
}

function tokens(count: number, seed = 1): number[] {
    const random = randomNumbers(seed);
    return Array.from({ length: count }, () => random(VOCAB));
}

function expectLogits(kind: Kind, found: Float32Array, row: number, ids: readonly number[], window = WINDOW): void {
    const logits = expectedLogits(kind, ids, window);
    logits.forEach((expected, i) => {
        const error = Math.abs(found[row * VOCAB + i]! - expected) / Math.max(100, Math.abs(expected));
        expect(error, `logit ${i} of ${ids.length} tokens`).toBeLessThan(1e-5);
    });
}

/** Random operations on a batch, each compared with what the token ids alone determine. */
class Walk {
    readonly texts: number[][];
    readonly random: (below: number) => number;

    constructor(
        readonly kind: Kind,
        readonly engine: FakeEngine,
        readonly state: BatchState,
        seed: number,
    ) {
        this.texts = state.lengths.map(() => []);
        this.random = randomNumbers(seed);
    }

    ids(count: number): number[] {
        return Array.from({ length: count }, () => this.random(VOCAB));
    }

    async step(): Promise<void> {
        const sequence = this.random(this.texts.length);
        const failing = this.random(8) === 0;
        if (failing) (this.random(2) === 0 ? this.engine.graph : this.engine.reader).failures = 1;
        try {
            await this.#operation(this.random(10), sequence);
        } catch (error) {
            if (!failing || !(error instanceof BundleError)) throw error;
        }
        this.engine.graph.failures = this.engine.reader.failures = 0;
        expect(this.state.lengths).toEqual(this.texts.map(({ length }) => length));
        expect(this.state.history(sequence)).toEqual(this.texts[sequence]);
    }

    async #operation(choice: number, sequence: number): Promise<void> {
        const text = this.texts[sequence]!;
        const room = this.state.maxLength - text.length;
        if (choice < 2 && room > 0) await this.#prefill(sequence, 1 + this.random(Math.min(room, 150)));
        else if (choice < 7) await this.#decode();
        else if (choice === 7) {
            const length = this.random(text.length + 1);
            await this.state.rewind(sequence, length);
            text.length = length;
        } else if (choice === 8 && this.texts.some(({ length }) => length === 0)) {
            const copy = await this.state.fork(sequence);
            this.texts[copy] = [...text];
        } else if (choice === 9) {
            const layers = await this.state.save(sequence);
            await this.state.rewind(sequence, 0);
            this.texts[sequence] = [];
            await this.state.restore(sequence, text, layers);
            this.texts[sequence] = text;
        }
    }

    async #prefill(sequence: number, count: number): Promise<void> {
        const ids = this.ids(count);
        const text = this.texts[sequence]!;
        const allLogits = this.random(2) === 0;
        const logits = await this.state.prefill(sequence, ids, { allLogits });
        text.push(...ids);
        const rows = allLogits ? count : 1;
        expect(logits.length).toBe(rows * VOCAB);
        for (let row = 0; row < rows; row++)
            expectLogits(this.kind, logits, row, text.slice(0, text.length - rows + row + 1));
    }

    async #decode(): Promise<void> {
        const active = this.texts.map(({ length }) => length < this.state.maxLength && this.random(3) > 0);
        const ids = this.texts.map((_, i) => (active[i] ? this.random(VOCAB) : -1));
        const logits = await this.state.decode(ids, active);
        active.forEach((goes, i) => {
            if (!goes) return;
            this.texts[i]!.push(ids[i]!);
            expectLogits(this.kind, logits, i, this.texts[i]!);
        });
    }
}

describe("BatchState", () => {
    it.each(KINDS)("gives the logits of the texts after any operations (%s)", async (kind) => {
        for (const [seed, maxLength, prefillChunk] of [
            [1, 300, 128],
            [2, 12, 3],
            [3, 7, 128],
            [4, 150, 11],
            [5, 4, 1],
        ] as const) {
            const engine = fakeEngine(kind, 300, WINDOW);
            const state = new BatchState(engine, { batchSize: 3, maxLength, prefillChunk });
            const walk = new Walk(kind, engine, state, seed);
            for (let step = 0; step < 150; step++) await walk.step();
        }
    });

    it("runs a prompt in the chunks of the document, with logits of the last position only", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const state = new BatchState(engine, { batchSize: 2 });
        await state.prefill(1, tokens(142));
        const calls = engine.graph.calls;
        expect(calls.map(({ sequence, starts, length, keep }) => [sequence, starts[0], length, keep])).toEqual([
            [1, 0, 125, 0],
            [1, 125, 15, 0],
            [1, 140, 2, 1],
        ]);
        expect(calls[0]!.shapes).toEqual({
            inputs_embeds: [1, 125, 4],
            position_ids: [1, 125],
            seqlens_k: [1],
            total_sequence_length: [],
            logits_to_keep: [1],
            expert_mask: [25, 5, 9 * 2],
            "expert_key.0": [25, 9 * 2, 2],
            "expert_value.0": [25, 9 * 2, 4],
            "expert_key.2": [25, 9 * 2, 2],
            "expert_value.2": [25, 9 * 2, 4],
        });
        expect(calls[2]!.shapes.expert_mask).toEqual([1, 2, 6 * 2]);
    });

    it("decodes with the shapes of the document", async () => {
        const engine = fakeEngine("molkv-int8", 300, WINDOW);
        const state = new BatchState(engine, { batchSize: 2, maxLength: 4 });
        await state.decode([1, 2], [true, false]);
        expect(engine.graph.calls[0]).toEqual({
            sequence: undefined,
            starts: [0, 0],
            length: 1,
            keep: 1,
            shapes: {
                inputs_embeds: [2, 1, 4],
                position_ids: [2, 1],
                seqlens_k: [2],
                total_sequence_length: [],
                logits_to_keep: [1],
                expert_mask: [2, 1, 4 * 2],
                "expert_key.0": [2, 4 * 2, 2],
                "expert_value.0": [2, 4 * 2, 4],
                "expert_value_scale.0": [2, 1, 4 * 2],
                "expert_key.2": [2, 4 * 2, 2],
                "expert_value.2": [2, 4 * 2, 4],
                "expert_value_scale.2": [2, 1, 4 * 2],
            },
        });
    });

    it("enlarges the cache in buckets of 128 slots, up to maxLength", async () => {
        const engine = fakeEngine("dense", 300, 0);
        const state = new BatchState(engine, { maxLength: 270 });
        const [cache] = engine.graph.caches;
        expect(cache!.slots).toBe(128);
        await state.prefill(0, tokens(128));
        expect(cache!.slots).toBe(128);
        await state.decode([1]);
        expect(cache!.slots).toBe(256);
        await state.prefill(0, tokens(130));
        expect(cache!.slots).toBe(270);
        state.release();
        expect(cache!.released).toBe(true);
    });

    it("reads each record of a step once, and records of earlier steps from memory", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const state = new BatchState(engine, { batchSize: 3 });
        await state.decode([7, 7, 8]);
        await state.decode([8, 7, 9]);
        expect(engine.reader.reads).toEqual([[7, 8], [9]]);
        expect(engine.store.recordsRead).toBe(3);
        expect(engine.store.recordsInMemory).toBe(2);
    });

    it("keeps the last slot of a full sequence that waits", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const state = new BatchState(engine, { batchSize: 3, maxLength: 6 });
        const text = tokens(6);
        await state.prefill(0, text);
        for (const id of [1, 2, 3]) await state.decode([0, id, 0], [false, true, false]);
        const [layer] = await state.save(0);
        const slots = Array.from({ length: 6 }, (_, slot) => layer!.key[slot * 3]! - 1);
        expect(slots).toEqual(text);
        await state.decode([0, 4, 0], [false, true, false]);
        const copy = await state.fork(0);
        expect((await state.save(copy))[0]!.key).toEqual(layer!.key);
    });

    it("forgets the last slot of a sequence that was rewound", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const state = new BatchState(engine, { batchSize: 2, maxLength: 6 });
        for (const last of [10, 20]) {
            await state.prefill(0, [1, 2, 3, 4, 5, last]);
            await state.decode([0, 1], [false, true]);
            expect((await state.save(0))[0]!.key[5 * 3]).toBe(last + 1);
            await state.rewind(0, 0);
        }
    });

    it("keeps the experts of a sequence that waits after its prompt", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const state = new BatchState(engine, { batchSize: 2 });
        const text = tokens(8);
        await state.prefill(1, text);
        await state.decode([30, 0], [true, false]);
        expectLogits("molkv", await state.decode([0, 40], [false, true]), 1, [...text, 40]);
    });

    it("reads the expert again that a failed step has overwritten", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const state = new BatchState(engine);
        const text = tokens(8);
        await state.prefill(0, text);
        engine.graph.failures = 1;
        await expect(state.decode([30])).rejects.toThrow(BundleError);
        await state.rewind(0, 7);
        expectLogits("molkv", await state.decode([40]), 0, [...text.slice(0, 7), 40]);
    });

    it("copies a part of a sequence of other sequences", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const source = new BatchState(engine, { batchSize: 2 });
        const target = new BatchState(engine, { maxLength: 200 });
        const text = tokens(180);
        await source.prefill(1, text);
        await target.copy(0, source, 1, 150);
        expectLogits("molkv", await target.decode([3]), 0, [...text.slice(0, 150), 3]);
    });

    it("stays as it was if a call is aborted between two chunks", async () => {
        const engine = fakeEngine("molkv", 300, WINDOW);
        const state = new BatchState(engine, { prefillChunk: 5 });
        const text = tokens(8, 2);
        await state.prefill(0, text);
        const controller = new AbortController();
        const reason = new Error("stop");
        engine.reader.onRead = () => {
            if (engine.graph.calls.length > 3) controller.abort(reason);
        };
        await expect(state.prefill(0, tokens(100, 3), { signal: controller.signal })).rejects.toBe(reason);
        await expect(state.decode([1], [true], controller.signal)).rejects.toBe(reason);
        expect(state.lengths).toEqual([8]);
        expectLogits("molkv", await state.decode([4]), 0, [...text, 4]);
    });

    it("refuses impossible arguments", async () => {
        const engine = fakeEngine("molkv", 20, WINDOW);
        const state = new BatchState(engine, { batchSize: 2 });
        await state.prefill(0, tokens(20));
        const refused: (() => Promise<unknown>)[] = [
            () => state.prefill(1, []),
            () => state.prefill(0, [1]),
            () => state.prefill(1, tokens(21)),
            () => state.prefill(1, [VOCAB]),
            () => state.prefill(1, [0.5]),
            () => state.prefill(2, [1]),
            () => state.prefill(-1, [1]),
            () => state.decode([1]),
            () => state.decode([1, 1], [true]),
            () => state.decode([1, 1]),
            () => state.decode([1, VOCAB], [false, true]),
            () => state.rewind(0, 21),
            () => state.rewind(0, -1),
            () => state.copy(0, state, 0, 3),
            () => state.copy(1, state, 0, 21),
            () => state.restore(0, [1], []),
            () => state.restore(1, tokens(21), []),
        ];
        for (const call of refused) await expect(call(), call.toString()).rejects.toThrow(RequestError);
        expect(() => state.history(2)).toThrow(RequestError);
        expect(() => new BatchState(engine, { maxLength: 21 })).toThrow(RequestError);
        expect(() => new BatchState(engine, { batchSize: 0 })).toThrow(RequestError);
        expect(() => new BatchState(engine, { prefillChunk: 0.5 })).toThrow(RequestError);
        expect(state.lengths).toEqual([20, 0]);
        await state.fork(0);
        await expect(state.fork(0)).rejects.toThrow(/found 2 sequences in use, expected a free one/);
    });

    it("says that too many sequences need too much memory", async () => {
        const engine = fakeEngine("molkv", 2 ** 24, WINDOW);
        expect(() => new BatchState(engine, { batchSize: 2 ** 31 - 1 })).toThrow(MemoryError);
        const state = new BatchState(engine);
        engine.graph.caches[0]!.grow = () => {
            throw new RangeError("Array buffer allocation failed");
        };
        await expect(state.prefill(0, tokens(129))).rejects.toThrow(MemoryError);
        expect(state.lengths).toEqual([0]);
    });
});
