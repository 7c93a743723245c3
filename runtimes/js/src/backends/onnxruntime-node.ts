/** The backend for Node: the package onnxruntime-node. */

import type { Backend } from "../backend.js";
import { optionsOf } from "../runtime/checks.js";
import { loadHostSession } from "./host-session.js";
import type { Ort } from "./onnxruntime.js";
import { checkThreads, importPackage } from "./onnxruntime.js";

const NAME = "onnxruntime-node";

/**
 * Return the backend that runs graphs on the CPU with onnxruntime-node.
 *
 * `threads` is the number of threads of a graph; undefined: ONNX Runtime chooses it. A call blocks the thread that makes
 * it.
 *
 * @throws RequestError `threads` is impossible.
 */
export function onnxruntimeNode(options: { readonly threads?: number | undefined } = {}): Backend {
    const { threads } = optionsOf(options);
    checkThreads(threads);
    let loading: Promise<Ort> | undefined;
    const load = (): Promise<Ort> => (loading ??= importPackage(NAME, () => import("onnxruntime-node")));
    return {
        description: { kind: NAME, threads },
        name: NAME,
        threads: threads ?? 0,
        readsFiles: true,
        async version() {
            return (await load()).env.versions.node ?? "";
        },
        async load(files) {
            const provider = {
                ort: await load(),
                name: NAME,
                options: {
                    executionProviders: ["cpu"],
                    ...(threads === undefined ? {} : { intraOpNumThreads: threads }),
                },
                refusesEmpty: false,
            };
            return loadHostSession(provider, files);
        },
    };
}
