/** Runs texts with the driver, and counts the records that they need. tests/browser/records.ts opens this page. */

import { Model, httpBundle, onnxruntimeWeb, webWorker, type ModelStats } from "../../src/web.js";

/** What a visit of the page does. */
export interface RecordVisit {
    /** The address of the bundle. */
    readonly bundle: string;
    readonly cacheBytes: number;
    /** Token ids of each text. */
    readonly texts: readonly (readonly number[])[];
    /** Tokens of each text that are run as a prompt; the others follow one by one. */
    readonly prompt: number;
}

declare global {
    interface Window {
        readTexts(visit: RecordVisit): Promise<ModelStats>;
    }
}

window.readTexts = async ({ bundle, cacheBytes, texts, prompt }) => {
    // Requests that run at once may end in any order, and so enter the cache in any order.
    const source = httpBundle(new URL(bundle, location.href).href, { cache: "opfs", cacheBytes, concurrency: 1 });
    const model = await Model.open(source, {
        backend: onnxruntimeWeb({ provider: "wasm", threads: 1, wasmPaths: new URL("/ort/", location.href).href }),
        worker: webWorker({ url: new URL("/build/web-worker.js", location.href) }),
    });
    const sequences = await model.sequences(1);
    for (const ids of texts) {
        await sequences.rewind(0, 0);
        await sequences.prefill(0, ids.slice(0, prompt));
        for (const id of ids.slice(prompt)) await sequences.decode([id]);
    }
    await sequences.close();
    const { stats } = model;
    await model.close();
    return stats;
};
