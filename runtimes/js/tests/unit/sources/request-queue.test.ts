import { afterEach, expect, test, vi } from "vitest";

import { httpBundle } from "../../../src/sources/http-bundle.js";
import { RequestQueue } from "../../../src/sources/http/request-queue.js";

afterEach(() => {
    vi.useRealTimers();
});

test("the background waits until nothing else runs or waits", async () => {
    const queue = new RequestQueue(2);
    const order: string[] = [];
    const task = (name: string) => async (): Promise<void> => {
        order.push(name);
        await new Promise((resolve) => setTimeout(resolve, 5));
    };
    const first = queue.run(true, undefined, task("background 1"));
    const second = queue.run(true, undefined, task("background 2"));
    const reads = [1, 2, 3].map((number) => queue.run(false, undefined, task(`read ${number}`)));
    await Promise.all([first, second, ...reads]);
    expect(order).toEqual(["background 1", "read 1", "read 2", "read 3", "background 2"]);
});

test("a failed task and an aborted one leave room for others", async () => {
    const queue = new RequestQueue(1);
    const controller = new AbortController();
    const failed = queue.run(false, undefined, () => Promise.reject(new Error("failed")));
    const aborted = queue.run(false, controller.signal, () => Promise.resolve("never"));
    controller.abort("enough");
    await expect(failed).rejects.toThrow("failed");
    await expect(aborted).rejects.toBe("enough");
    expect(await queue.run(true, undefined, () => Promise.resolve("done"))).toBe("done");
});

test("a server that sends nothing counts as a cut connection", async () => {
    vi.useFakeTimers();
    const source = httpBundle("http://host/", {
        cache: "memory",
        fetch: (_, { signal }) =>
            new Promise((_resolve, reject) => {
                signal!.addEventListener("abort", () => {
                    reject(new DOMException("aborted", "AbortError"));
                });
            }),
    });
    const found = expect(source.manifest(100)).rejects.toThrow(/3 attempts \(no data for 60 s\)/);
    await vi.advanceTimersByTimeAsync(3 * 60_000 + 1250);
    await found;
});
