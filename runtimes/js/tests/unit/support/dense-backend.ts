/** Tests that every backend must pass, with the conformance bundle "dense". */

import { expect } from "vitest";
import type { Backend, GraphSession, KvCache } from "../../../src/backend.js";
import type { GraphBundle } from "./graph-bundle.js";
import { goldenText, readGraphBundle, runDense } from "./graph-bundle.js";

const TOP = 16;
/** cases.json, "limits". */
const LIMIT = 2.593994140625e-4;

export interface Loaded {
    readonly bundle: GraphBundle;
    readonly session: GraphSession;
    readonly vocabSize: number;
}

export async function loadDense(backend: Backend): Promise<Loaded> {
    const bundle = readGraphBundle("dense");
    return { bundle, session: await backend.load(bundle.files), vocabSize: bundle.manifest.model.vocab_size! };
}

/** Compare the logits of one position with the golden vectors. */
export function expectGolden(logits: Float32Array, text: ReturnType<typeof goldenText>, position: number): void {
    for (let k = 0; k < TOP; k++) {
        const at = position * TOP + k;
        expect(Math.abs(logits[text.topIds[at]!]! - text.topLogits[at]!)).toBeLessThanOrEqual(LIMIT);
    }
}

/** Run a text as one prompt in two chunks, the first of which keeps no logits. */
export async function checkPrefill({ bundle, session, vocabSize }: Loaded): Promise<void> {
    const text = goldenText("dense", 0);
    const cache = session.createCache(1, 64);
    const half = text.ids.length >> 1;
    const none = await runDense(bundle, session, { cache, starts: [0], ids: [text.ids.slice(0, half)], keep: 0 });
    expect(none.length).toBe(0);
    const rest = text.ids.length - half;
    const chunk = { cache, starts: [half], ids: [text.ids.slice(half)], keep: rest };
    const logits = await runDense(bundle, session, chunk);
    expect(logits.length).toBe(rest * vocabSize);
    for (let position = half; position < text.ids.length; position++) {
        const row = logits.subarray((position - half) * vocabSize, (position - half + 1) * vocabSize);
        expectGolden(row, text, position);
    }
    cache.release();
}

/**
 * Run two texts as a batch: prompts of different length alone, in a short cache, then growth and decode steps together.
 * A third sequence gets a copy of the first. Return the cache and its texts.
 */
export async function checkBatch({ bundle, session, vocabSize }: Loaded): Promise<KvCache> {
    const texts = [goldenText("dense", 0), goldenText("dense", 1)];
    const starts = [3, 5];
    const cache = session.createCache(3, 6);
    for (const [sequence, start] of starts.entries()) {
        const ids = [texts[sequence]!.ids.slice(0, start)];
        const logits = await runDense(bundle, session, { cache, sequence, starts: [0], ids, keep: 1 });
        expectGolden(logits, texts[sequence]!, start - 1);
    }
    await cache.grow(32);
    expect(cache.slots).toBe(32);
    await cache.copy(2, cache, 0, 3);
    const three = [texts[0]!, texts[1]!, texts[0]!];
    for (let step = 0; step < 8; step++) {
        const positions = [3 + step, 5 + step, 3 + step];
        const ids = three.map((text, sequence) => [text.ids[positions[sequence]!]!]);
        const logits = await runDense(bundle, session, { cache, starts: positions, ids, keep: 1 });
        three.forEach((text, sequence) => {
            const row = logits.subarray(sequence * vocabSize, (sequence + 1) * vocabSize);
            expectGolden(row, text, positions[sequence]!);
        });
    }
    return cache;
}

/** Save the slots of a sequence, write them into another cache, and go on there. */
export async function checkSaved({ bundle, session }: Loaded, cache: KvCache): Promise<void> {
    const text = goldenText("dense", 1);
    const saved = await cache.read(1, 10);
    expect(saved).toHaveLength(bundle.files.caches.length);
    const { heads: headCount, headDim } = bundle.files.caches[0]!;
    expect(saved[0]!.key.length).toBe(headCount * 10 * headDim);
    const other = session.createCache(2, 16);
    await other.write(1, 0, saved);
    expect(await other.read(1, 10)).toEqual(saved);
    expect((await other.read(0, 10))[0]!.key.every((number) => number === 0)).toBe(true);
    // Only the last 6 slots: `write` must leave the other slots as they are.
    const tail = (numbers: Float32Array | Int8Array): Float32Array => {
        const heads = Array.from({ length: headCount }, (_, head) =>
            Array.from(numbers.subarray((head * 10 + 4) * headDim, (head + 1) * 10 * headDim)),
        );
        return Float32Array.from(heads.flat());
    };
    await other.write(
        1,
        4,
        saved.map(({ key, value }) => ({ key: tail(key), value: tail(value) })),
    );
    expect(await other.read(1, 10)).toEqual(saved);
    const ids = [[text.ids[10]!]];
    const logits = await runDense(bundle, session, { cache: other, sequence: 1, starts: [10], ids, keep: 1 });
    expectGolden(logits, text, 10);
}
