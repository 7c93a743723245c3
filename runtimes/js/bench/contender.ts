/**
 * A process with this driver as a contender of benchmarks/speed/contest.py: node contender.mjs BUNDLE THREADS.
 *
 * It reads orders and writes answers, each one line of JSON (benchmarks/speed/process.py).
 */

import { createInterface } from "node:readline";

import { Model, nodeFolder, onnxruntimeNode } from "../src/node.js";

const CONTEXT = 1024; // benchmarks.speed.CONTEXT
const STEPS = 48; // benchmarks.speed.STEPS

interface Order {
    readonly what: "prefill" | "decode";
    readonly length: number;
}

const [bundle, threads] = process.argv.slice(2) as [string, string];
const model = await Model.open(nodeFolder(bundle), { backend: onnxruntimeNode({ threads: Number(threads) }) });
const { vocabSize, contextLength } = model.stats;
const sequences = await model.sequences(1, { maxLength: Math.min(CONTEXT, contextLength) });

/** Run `call`, and return its seconds. */
async function timed(call: () => Promise<unknown>): Promise<number> {
    const start = performance.now();
    await call();
    return (performance.now() - start) / 1000;
}

async function answer({ what, length }: Order): Promise<number> {
    const ids = Array.from({ length }, (_, index) => (index * 7919 + 17) % vocabSize);
    await sequences.rewind(0, 0);
    if (what === "prefill") {
        return timed(() => sequences.prefill(0, ids));
    }
    await sequences.prefill(0, ids.slice(0, length - STEPS));
    const times: number[] = [];
    for (const id of ids.slice(length - STEPS)) {
        times.push(await timed(() => sequences.decode([id])));
    }
    times.sort((first, second) => first - second);
    return (times[STEPS / 2 - 1]! + times[STEPS / 2]!) / 2;
}

console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
    const seconds = await answer(JSON.parse(line) as Order);
    console.log(JSON.stringify({ seconds, rss: process.resourceUsage().maxRSS * 1024 }));
}
