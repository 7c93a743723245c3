/**
 * The conformance suite in Node: node .build/node.mjs [--wasm] [--worker].
 *
 * --wasm runs ONNX Runtime's WebAssembly in place of its native library. --worker runs models in worker threads, with the
 * package that `npm run build` made.
 */

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { Model, nodeFolder, nodeWorker, onnxruntimeNode } from "../../src/node.js";
import { onnxruntimeWeb } from "../../src/web.js";
import { line, runSuite, summary, type Outcome } from "./suite.js";

const here = dirname(fileURLToPath(import.meta.url)); // runtimes/js/.build
const folder = join(here, "../../conformance");
const { values } = parseArgs({ options: { wasm: { type: "boolean" }, worker: { type: "boolean" } } });
const options = {
    backend: values.wasm ? onnxruntimeWeb({ provider: "wasm", threads: 1 }) : onnxruntimeNode(),
    worker: values.worker ? nodeWorker({ url: new URL("../dist/node-worker.js", import.meta.url) }) : undefined,
};

async function openFiles(files: ReadonlyMap<string, Uint8Array>): Promise<Model> {
    const copy = await mkdtemp(join(tmpdir(), "molkv-"));
    try {
        for (const [name, content] of files) {
            await writeFile(join(copy, name), content);
        }
        const model = await Model.open(nodeFolder(copy), options);
        const close = model.close.bind(model);
        model.close = async () => {
            await close();
            await rm(copy, { recursive: true });
        };
        return model;
    } catch (error) {
        await rm(copy, { recursive: true });
        throw error;
    }
}

const outcomes: Outcome[] = [];
for await (const outcome of runSuite({
    read: (path) => readFile(join(folder, path)),
    open: (bundle) => Model.open(nodeFolder(join(folder, "bundles", bundle)), options),
    openFiles,
})) {
    outcomes.push(outcome);
    console.log(line(outcome));
}
console.log(summary(outcomes));
process.exitCode = outcomes.some(({ result }) => result === "FAIL") ? 1 : 0;
