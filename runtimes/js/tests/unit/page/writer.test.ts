import { afterEach, expect, test, vi } from "vitest";

import { Announcer } from "../../../page/announcer.js";
import { failureText } from "../../../page/failures.js";
import { FieldError } from "../../../page/settings.js";
import { Writer, type Prompt } from "../../../page/writer.js";
import type { Model } from "../../../src/api.js";
import { BundleError, MemoryError } from "../../../src/errors.js";
import { FakeModel } from "../support/fake-model.js";

async function written(
    writer: Writer,
    prompt: Prompt,
    maxNewTokens: number,
): Promise<{ ids: number[]; read: number[][] }> {
    const [ids, read]: [number[], number[][]] = [[], []];
    for await (const item of writer.write(prompt, { maxNewTokens })) {
        ids.push(item.token.id);
        read.push([...item.read]);
    }
    return { ids, read };
}

function fake(): { model: FakeModel; writer: Writer } {
    const model = new FakeModel();
    return { model, writer: new Writer(model as unknown as Model) };
}

test("each token comes with the ids whose records were read for it", async () => {
    const { writer } = fake();
    // 7 * 3 + 3 = 24, 7 * 24 + 3 = 171
    expect(await written(writer, { ids: [1, 2, 3] }, 2)).toEqual({ ids: [24, 171], read: [[1, 2, 3], [24]] });
});

test("a prompt that continues the last text computes only the new ids and the last token", async () => {
    const { model, writer } = fake();
    await written(writer, { ids: [1, 2, 3] }, 1);
    expect((await written(writer, { ids: [1, 2, 3, 24, 5] }, 1)).read).toEqual([[24, 5]]);
    expect(model.computed).toEqual([[1, 2, 3], [5]]);
});

test("the same prompt computes its last id again", async () => {
    const { model, writer } = fake();
    const first = await written(writer, { ids: [1, 2, 3] }, 2);
    expect((await written(writer, { ids: [1, 2, 3] }, 2)).ids).toEqual(first.ids);
    expect(model.computed).toEqual([[1, 2, 3], [3]]);
});

test("another prompt begins anew, and a chat is rendered by the template", async () => {
    const { model, writer } = fake();
    await written(writer, { text: "ab" }, 1);
    await written(writer, { messages: [{ role: "u", content: "x" }] }, 1);
    expect(model.computed).toEqual([
        [97, 98],
        [117, 58, 120, 59],
    ]);
});

test("errors are one line that says what to do", () => {
    const bundle = new BundleError("bundle/model.data: found status 404,\nexpected 200");
    expect(failureText(bundle)).toBe(
        "bundle/model.data: found status 404, expected 200. Check the connection and the server, then try again.",
    );
    expect(failureText(new MemoryError("too long."))).toBe(
        "too long. Close other tabs or shorten the prompt, then try again.",
    );
    expect(failureText(new FieldError("seed", "Seed: found x"))).toBe("Seed: found x");
    expect(failureText(new TypeError("broken"))).toBe("broken. Reload the page.");
});

afterEach(() => {
    vi.useRealTimers();
});

test("a screen reader gets whole words every three seconds, and the rest at the end", () => {
    vi.useFakeTimers();
    const heard: string[] = [];
    const announcer = new Announcer((text) => heard.push(text));
    for (const piece of ["one t", "wo th"]) announcer.push(piece);
    expect(heard).toEqual([]);
    vi.advanceTimersByTime(3000);
    expect(heard).toEqual(["one two"]);
    announcer.push("ree");
    announcer.finish("Done: 3 tokens.");
    vi.advanceTimersByTime(10_000);
    expect(heard).toEqual(["one two", "three Done: 3 tokens."]);
});
