/** The conformance cases of runtimes/conformance, as far as tests of single modules use them. */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const folder = new URL("../../../../conformance/", import.meta.url);

/** A step of a case of kind "sequences". */
export interface Step {
    readonly do: "prefill" | "decode" | "rewind" | "fork";
    readonly sequence: number;
    readonly ids: readonly number[];
    readonly active: readonly boolean[];
    readonly length: number;
    readonly copy: number;
    readonly logit: readonly [number, number];
    readonly logits: readonly (readonly [number, number] | null)[];
    readonly error?: string;
}

/** A case; it has the fields of its kind. */
export interface Case {
    readonly name: string;
    readonly kind: string;
    readonly bundle: string;
    readonly batch_size: number;
    readonly steps: readonly Step[];
    readonly prompts: readonly (readonly number[])[];
    readonly max_new_tokens: number;
    readonly sampling: Readonly<Record<string, unknown>>;
    readonly stop_ids?: readonly number[];
    readonly lookup?: number;
    readonly logprobs?: number;
    readonly expected: readonly {
        readonly ids: readonly number[];
        readonly compared: number;
        readonly finish: string;
    }[];
}

interface Cases {
    readonly limits: Readonly<Record<string, number>>;
    readonly cases: readonly Case[];
}

export const { cases, limits } = JSON.parse(readFileSync(new URL("cases.json", folder), "utf8")) as Cases;

/** Return the path of a conformance bundle. */
export function bundlePath(name: string): string {
    return fileURLToPath(new URL(`bundles/${name}`, folder));
}

/** Return the names of the bundles that have a graph of profile "cpu". */
export function cpuBundles(): string[] {
    return Object.keys(limits).filter((name) => {
        const manifest = JSON.parse(readFileSync(`${bundlePath(name)}/manifest.json`, "utf8")) as {
            graphs: Record<string, unknown>;
        };
        return "cpu" in manifest.graphs;
    });
}
