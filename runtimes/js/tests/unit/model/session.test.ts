import { afterAll, beforeEach, describe, expect, test } from "vitest";

import type { Model, Session } from "../../../src/api.js";
import { BundleError, ProviderError, RequestError } from "../../../src/errors.js";
import type { GenerateOptions, Token } from "../../../src/options.js";
import { type Hooks, idsOf, openHooked, places } from "../support/hooked-model.js";

// The conformance cases molkv/stop and molkv/full show that `Model.stream` is right; it is the measure here.
const PROMPT = [17, 56, 35, 36, 28];
const AFTER_PROMPT = [31, 28, 38, 44];
const CONTEXT = 160;
const GREEDY: GenerateOptions = { stopIds: [], sampling: {}, maxNewTokens: 4 };

/** Return the id of the next token. */
async function nextId(stream: AsyncIterator<Token>): Promise<number> {
    return ((await stream.next()) as IteratorYieldResult<Token>).value.id;
}

describe.each(places)("a session in the place %s", (place) => {
    const hooks: Hooks = {};
    const opened = openHooked("molkv", hooks, place);
    const fresh = openHooked("molkv");
    let model: Model;
    let session: Session;

    beforeEach(async () => {
        hooks.logits = hooks.read = undefined;
        model = await opened;
        session = await model.session();
    });

    afterAll(async () => {
        await (await opened).close();
        await (await fresh).close();
    });

    /** The tokens that follow a text, without any session. */
    async function expected(ids: readonly number[], count = 4): Promise<number[]> {
        return idsOf((await fresh).stream([ids], { ...GREEDY, maxNewTokens: count }));
    }

    /** Check that a session goes on as its text demands. */
    async function expectGoesOn(checked: Session, ids: readonly number[]): Promise<void> {
        expect(checked.ids).toEqual(ids);
        expect(await idsOf(checked.stream([9, 4], GREEDY))).toEqual(await expected([...ids, 9, 4]));
    }

    test("continues a text as one call does", async () => {
        expect(await idsOf(session.stream(PROMPT, GREEDY))).toEqual(AFTER_PROMPT);
        expect(session.ids).toEqual([...PROMPT, ...AFTER_PROMPT]);
        const next = await idsOf(session.stream([], GREEDY));
        expect(next).toEqual(await expected([...PROMPT, ...AFTER_PROMPT]));
        await expectGoesOn(session, [...PROMPT, ...AFTER_PROMPT, ...next]);
    });

    test("rewinds, forks, saves and restores in any order", async () => {
        let state = 7;
        const random = (count: number): number => (state = (state * 48271) % 2147483647) % count;
        const all: { session: Session; ids: number[] }[] = [{ session, ids: [] }];
        for (let step = 0; step < 60; step++) {
            const one = all[random(all.length)]!;
            const action = random(5);
            if (action === 0 && one.ids.length > 0) {
                const length = random(one.ids.length + 1);
                await one.session.rewind(length);
                one.ids = one.ids.slice(0, length);
            } else if (action === 1 && all.length < 4) {
                all.push({ session: await one.session.fork(), ids: one.ids });
            } else if (action === 2 && one.ids.length > 0) {
                one.session = await model.restore(await one.session.save());
            } else if (one.ids.length < 100) {
                const ids = Array.from({ length: 1 + random(12) }, () => random(61));
                const count = 1 + random(3);
                const found = await idsOf(one.session.stream(ids, { ...GREEDY, maxNewTokens: count }));
                expect(found).toEqual(await expected([...one.ids, ...ids], count));
                one.ids = [...one.ids, ...ids, ...found];
            }
            expect(all.map((each) => each.session.ids)).toEqual(all.map(({ ids }) => ids));
        }
    });

    test("ends an earlier stream when a later one begins", async () => {
        const first = session.stream(PROMPT, GREEDY);
        await first.next();
        const text = [...PROMPT, 31];
        const second = session.stream([3], GREEDY);
        const found = [await nextId(second)];
        await expect(first.next()).rejects.toThrow(
            new RequestError("the session is in use by a later call, which ended this one"),
        );
        found.push(...(await idsOf(second)));
        expect(found).toEqual(await expected([...text, 3]));
        await expectGoesOn(session, [...text, 3, ...found]);
    });

    test("keeps the text right when two streams run at the same time", async () => {
        const first = session.stream(PROMPT, GREEDY);
        const second = session.stream([3], GREEDY);
        const [early, token] = await Promise.allSettled([nextId(first), nextId(second)]);
        // The first stream either ended before it had a token, or the second one follows this token.
        const text = early.status === "fulfilled" ? [...PROMPT, early.value, 3] : [3];
        const found = [(token as PromiseFulfilledResult<number>).value, ...(await idsOf(second))];
        expect(found).toEqual(await expected(text));
        await expectGoesOn(session, [...text, ...found]);
    });

    test("rewinds, forks and saves while a step runs", async () => {
        const stream = session.stream(PROMPT, GREEDY);
        const text = [...PROMPT, await nextId(stream)];
        const [step, copy, saved] = await Promise.all([nextId(stream), session.fork(), session.save()]);
        // Each of the two holds the text before the step or after it.
        for (const other of [copy, await model.restore(saved)]) {
            const { ids } = other;
            expect([text, [...text, step]]).toContainEqual(ids);
            await expectGoesOn(other, ids);
        }
        const [ended] = await Promise.allSettled([stream.next(), session.rewind(3)]);
        if (ended.status === "rejected") expect(ended.reason).toBeInstanceOf(RequestError);
        await expectGoesOn(session, PROMPT.slice(0, 3));
    });

    test("lets an ended stream end, whatever came after its last token", async () => {
        const found: number[] = [];
        for await (const { id, finish } of session.stream(PROMPT, GREEDY)) {
            found.push(id);
            if (finish) await session.rewind(2);
        }
        expect(found).toEqual(AFTER_PROMPT);
        await expectGoesOn(session, PROMPT.slice(0, 2));
    });

    test("keeps the tokens of a stream that the caller left", async () => {
        for await (const { id } of session.stream(PROMPT, { ...GREEDY, maxNewTokens: 100 })) {
            if (id === AFTER_PROMPT[1]) break;
        }
        await expectGoesOn(session, [...PROMPT, ...AFTER_PROMPT.slice(0, 2)]);
    });

    test.each([0, 1, 2])("goes on after a call of the graph, number %i, with NaN", async (bad) => {
        let calls = 0;
        hooks.logits = (logits) => {
            if (calls++ === bad) logits[60] = NaN;
        };
        const found: number[] = [];
        const reading = async (): Promise<void> => {
            for await (const { id } of session.stream(PROMPT, GREEDY)) found.push(id);
        };
        await expect(reading()).rejects.toThrow(ProviderError);
        expect(found).toEqual(AFTER_PROMPT.slice(0, bad));
        const text = bad === 0 ? [] : [...PROMPT, ...found];
        // The bad numbers must not be in a copy or a file either.
        const copy = await session.fork();
        if (bad > 0) {
            const saved = await session.save();
            const header = new TextDecoder().decode(saved.subarray(8, 2000));
            expect(header).toMatch(/"past_key_values.0.key":\{"dtype":"F32","shape":\[\d+,0,/);
            await expectGoesOn(await model.restore(saved), text);
        }
        await expectGoesOn(copy, text);
        await expectGoesOn(session, text);
    });

    test("drops the state when a call waits behind one with NaN", async () => {
        const first = session.stream(PROMPT, GREEDY);
        await first.next();
        hooks.logits = (logits) => {
            hooks.logits = undefined;
            logits.fill(Infinity);
        };
        const [bad, good] = await Promise.allSettled([first.next(), session.stream([3], GREEDY).next()]);
        expect([bad.status, good.status]).toEqual(["rejected", "fulfilled"]);
        const text = [...PROMPT, 31, 3, ...(await expected([...PROMPT, 31, 3], 1))];
        await expectGoesOn(session, text);
    });

    test.each([0, 1])("goes on after a failed read of records, number %i", async (bad) => {
        let reads = 0;
        // These ids are not in memory yet in this model: each test uses other ones.
        const prompt = bad === 0 ? [50, 51] : [52, 53];
        const other = await openHooked("molkv", hooks, place);
        const own = await other.session();
        hooks.read = () => {
            if (reads++ === bad) throw new BundleError("the record is damaged");
        };
        const found: number[] = [];
        const reading = async (): Promise<void> => {
            for await (const { id } of own.stream(prompt, GREEDY)) found.push(id);
        };
        await expect(reading()).rejects.toThrow("the record is damaged");
        expect(found).toHaveLength(bad);
        await expectGoesOn(own, bad === 0 ? [] : [...prompt, ...found]);
        await other.close();
    });

    test("goes on after a call of the graph that fails", async () => {
        await idsOf(session.stream(PROMPT, GREEDY));
        hooks.logits = () => {
            hooks.logits = undefined;
            throw new BundleError("the graph fails");
        };
        await expect(session.stream([1], GREEDY).next()).rejects.toThrow("the graph fails");
        await expectGoesOn(session, [...PROMPT, ...AFTER_PROMPT]);
    });

    test("ends with the reason of the signal in each state, and goes on", async () => {
        const reason = new Error("enough");
        await expect(session.stream(PROMPT, { ...GREEDY, signal: AbortSignal.abort(reason) }).next()).rejects.toBe(
            reason,
        );
        expect(session.ids).toEqual([]);

        const between = new AbortController();
        const stream = session.stream(PROMPT, { ...GREEDY, signal: between.signal });
        await stream.next();
        between.abort(reason);
        await expect(stream.next()).rejects.toBe(reason);
        expect(await stream.next()).toEqual({ done: true, value: undefined });

        // A long prompt is run in parts of 128 tokens.
        const running = new AbortController();
        hooks.logits = () => {
            running.abort(reason);
            return new Promise((resolve) => setTimeout(resolve, 20));
        };
        const long = Array.from({ length: 150 }, (_, index) => index % 61);
        await expect(session.stream(long, { ...GREEDY, signal: running.signal }).next()).rejects.toBe(reason);
        hooks.logits = undefined;
        await expectGoesOn(session, [...PROMPT, 31]);
    });

    test("ends a call that waits for its turn at once", async () => {
        const reason = new Error("enough");
        const waiting = new AbortController();
        let end = (): void => undefined;
        const running = new Promise<void>((started) => {
            hooks.logits = () => {
                started();
                return new Promise((resolve) => {
                    end = resolve;
                });
            };
        });
        const other = nextId((await model.session()).stream(PROMPT, GREEDY));
        await running;
        const second = session.stream(PROMPT, { ...GREEDY, signal: waiting.signal }).next();
        await new Promise((resolve) => setTimeout(resolve, 20));
        waiting.abort(reason);
        await expect(second).rejects.toBe(reason);
        hooks.logits = undefined;
        end();
        expect(await other).toBe(31);
        await expectGoesOn(session, []);
    });

    test("closes while a step runs, and more than once", async () => {
        const before = hooks.caches!;
        const stream = session.stream(PROMPT, GREEDY);
        await stream.next();
        const [[ended]] = await Promise.all([Promise.allSettled([stream.next()]), session.close(), session.close()]);
        if (ended.status === "rejected") expect(ended.reason).toBeInstanceOf(RequestError);
        expect(hooks.caches).toBe(before - 1);
        for (const call of [
            () => session.stream([1]).next(),
            () => session.text("a").next(),
            () => session.rewind(0),
            () => session.fork(),
            () => session.save(),
        ]) {
            await expect(call()).rejects.toThrow(RequestError);
        }
        await session.close();
        expect(hooks.caches).toBe(before - 1);
    });

    test("gives one token after a text of the whole context, and then refuses more", async () => {
        const long = Array.from({ length: CONTEXT }, (_, index) => (7 * index) % 61);
        const tokens = [];
        for await (const token of session.stream(long, { ...GREEDY, maxNewTokens: 9 })) tokens.push(token);
        expect(tokens).toHaveLength(1);
        expect(tokens[0]).toMatchObject({ id: (await expected(long, 1))[0], finish: "length" });
        expect(session.ids).toHaveLength(CONTEXT + 1);
        await expect(session.stream([], GREEDY).next()).rejects.toThrow(/has 161 tokens.*expected at most 160/);
        const restored = await model.restore(await session.save());
        await restored.rewind(CONTEXT);
        expect(await idsOf(restored.stream([], GREEDY))).toEqual([tokens[0]!.id]);
        await session.rewind(150);
        await expectGoesOn(session, long.slice(0, 150));
    });

    test("saves the messages of the restored session, unless the caller gives others", async () => {
        await session.stream(PROMPT, GREEDY).next();
        const messages = [{ role: "user", content: "hello" }];
        expect(session.messages).toBeUndefined();
        const restored = await model.restore(await session.save({ messages }));
        expect(restored.messages).toEqual(messages);
        expect((await model.restore(await restored.save())).messages).toEqual(messages);
        expect((await model.restore(await (await restored.fork()).save())).messages).toEqual(messages);
        const others = [...messages, { role: "assistant", content: "hi" }];
        expect((await model.restore(await restored.save({ messages: others }))).messages).toEqual(others);
        for (const wrong of ["x", 5, {}, [5], ["x"], [[]], [{ role: 1 }], [{ role: "\ud800" }]]) {
            await expect(session.save({ messages: wrong as never })).rejects.toThrow(RequestError);
        }
    });

    test("gives lists of ids that do not change later", async () => {
        await idsOf(session.stream(PROMPT, GREEDY));
        const { ids } = session;
        await session.rewind(2);
        await idsOf(session.stream([1], GREEDY));
        expect(ids).toEqual([...PROMPT, ...AFTER_PROMPT]);
    });

    test("refuses arguments of wrong types and values", async () => {
        await session.stream(PROMPT, GREEDY).next();
        const before = session.ids;
        const wrongs: (() => Promise<unknown>)[] = [
            ...[null, "x", 5, [null], ["1"], [NaN], [1.5], [-1], [61], {}].flatMap((wrong) => [
                () => session.stream(wrong as never, GREEDY).next(),
            ]),
            ...[null, "x", 5, true].map((wrong) => () => session.stream([1], wrong as never).next()),
            ...[null, NaN, -1, 1.5, 7, "1"].map((wrong) => () => session.rewind(wrong as never)),
            ...[null, "x", 5].map((wrong) => () => session.save(wrong as never)),
            ...[null, "x", 5, [], {}].map((wrong) => () => model.restore(wrong as never)),
            () => model.restore(new Uint8Array(0)),
            async () => (await model.session()).save(),
            async () => (await model.session()).stream([]).next(),
        ];
        for (const [index, wrong] of wrongs.entries()) {
            await expect(wrong(), `wrong call ${index}`).rejects.toThrow(RequestError);
        }
        await expect(session.text("a").next()).rejects.toThrow(BundleError);
        await expectGoesOn(session, before);
    });
});
