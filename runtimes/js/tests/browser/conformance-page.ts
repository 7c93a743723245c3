/** The conformance suite in a browser. The address of the page says which backend runs: ?provider=wasm&threads=1. */

import { Model, fileHandles, httpBundle, onnxruntimeWeb, webWorker } from "../../src/web.js";
import type { Case } from "../conformance/cases.js";
import { line, runSuite, summary, type Outcome, type Platform } from "../conformance/suite.js";

declare global {
    interface Window {
        /** Set by run.ts: prints a line. */
        report(text: string): Promise<void>;
        /** Called by run.ts: returns the number of failures. */
        conformance(): Promise<number>;
    }
}

const parameters = new URL(location.href).searchParams;
const options = {
    backend: onnxruntimeWeb({
        provider: parameters.get("provider") === "webgpu" ? "webgpu" : "wasm",
        threads: Number(parameters.get("threads") ?? 1),
        wasmPaths: new URL("/ort/", location.href).href,
    }),
    worker: webWorker({ url: new URL("/build/web-worker.js", location.href) }),
};

async function read(path: string): Promise<Uint8Array> {
    const response = await fetch(`/conformance/${path}`);
    if (!response.ok) {
        throw new Error(`${path}: status ${response.status}`);
    }
    return new Uint8Array(await response.arrayBuffer());
}

/** Return why the kernels of a backend compute nothing in a case that they do not compute in another case; "": they do. */
function sameKernels({ kind, bundle, name }: Case): string {
    const comparesNumbers = ["golden", "sequences", "session"].includes(kind) || name.endsWith("/long");
    if (!comparesNumbers) return "what the kernels compute here is in other cases";
    const hostOnly = /^(experts-|molkv-foreign$|bytes$|byte-fallback$|dense$|window-int8-float16$)/;
    return hostOnly.test(bundle) ? "the bundle has no kernel that another one lacks" : "";
}

window.conformance = async () => {
    const outcomes: Outcome[] = [];
    const platform: Platform = {
        read,
        open: (bundle) =>
            Model.open(
                httpBundle(new URL(`/conformance/bundles/${bundle}/`, location.href).href, { cache: "opfs" }),
                options,
            ),
        openFiles: (files) =>
            Model.open(
                fileHandles([...files].map(([name, content]) => new File([content as Uint8Array<ArrayBuffer>], name))),
                options,
            ),
    };
    for await (const outcome of runSuite(platform, parameters.has("kernels") ? sameKernels : undefined)) {
        outcomes.push(outcome);
        await window.report(line(outcome));
    }
    await window.report(summary(outcomes));
    return outcomes.filter(({ result }) => result === "FAIL").length;
};
