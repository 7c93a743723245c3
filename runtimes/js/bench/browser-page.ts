/** The page of the benchmark in a browser: opens a bundle in a worker and generates, as bench/browser.ts says. */

import { Model, httpBundle, onnxruntimeWeb, webWorker, type ModelStats } from "../src/web.js";

export interface Visit {
    /** The folder of the bundle on the server, such as "/bundles/int8/". */
    readonly bundle: string;
    readonly provider: "wasm" | "webgpu";
    readonly threads: number;
    readonly prompt: readonly number[];
    readonly tokens: number;
}

export interface VisitResult {
    /** Milliseconds from the start to the open model, and to the first token. */
    readonly open: number;
    readonly firstToken: number;
    /** Milliseconds of each step after the first token. */
    readonly steps: readonly number[];
    readonly ids: readonly number[];
    readonly stats: ModelStats;
}

declare global {
    interface Window {
        visit(visit: Visit): Promise<VisitResult>;
    }
}

window.visit = async ({ bundle, provider, threads, prompt, tokens }) => {
    const start = performance.now();
    const model = await Model.open(httpBundle(new URL(bundle, location.href).href, { cache: "opfs" }), {
        backend: onnxruntimeWeb({ provider, threads, wasmPaths: new URL("/ort/", location.href).href }),
        worker: webWorker({ url: new URL("/build/web-worker.js", location.href) }),
    });
    const open = performance.now() - start;
    const times: number[] = [];
    const ids: number[] = [];
    for await (const token of model.stream([prompt], { maxNewTokens: tokens, sampling: {}, stopIds: [] })) {
        times.push(performance.now());
        ids.push(token.id);
    }
    const steps = times.slice(1).map((time, index) => time - times[index]!);
    const { stats } = model;
    await model.close();
    return { open, firstToken: times[0]! - start, steps, ids, stats };
};
