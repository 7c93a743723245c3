/** The inputs and outputs of the dense graph of profile "cpu", which follow from the model. */

import type { KvCacheShape } from "../backend.js";
import { BundleError } from "../errors.js";
import { cacheNames } from "./cache-names.js";
import type { ExpertAttention, Graph, GraphFile, ModelConfig, TensorInfo } from "./manifest.js";

/**
 * Return the inputs and outputs of a graph of profile "cpu", in the order of docs/bundle-format.md, "The dense graph of
 * profile cpu".
 */
export function graphInterface(config: ModelConfig, graph: Graph): { inputs: TensorInfo[]; outputs: TensorInfo[] } {
    const { expertAttention, kvCaches } = config;
    return {
        inputs: [
            { name: "inputs_embeds", dtype: "float32", shape: ["batch", "length", config.hiddenSize] },
            ...(expertAttention ? windowInputs(config, graph, expertAttention) : presentInputs(config)),
            { name: "seqlens_k", dtype: "int32", shape: ["batch"] },
            { name: "total_sequence_length", dtype: "int32", shape: [] },
            { name: "logits_to_keep", dtype: "int64", shape: [1] },
            ...cacheTensors("past_key_values", kvCaches, graph),
        ],
        outputs: [
            { name: "logits", dtype: "float32", shape: ["batch", "logits_length", config.vocabSize] },
            ...cacheTensors("present", kvCaches, graph),
            ...cacheTensors("present", sharedCaches(config), graph),
        ],
    };
}

/** Return the names of the outputs that write the KV caches of other layers again. */
export function sharedOutputs(config: ModelConfig): string[] {
    return sharedCaches(config).flatMap((cache) => cacheNames("present", cache));
}

function windowInputs(config: ModelConfig, graph: Graph, { keySize }: ExpertAttention): TensorInfo[] {
    const inputs: TensorInfo[] = [
        { name: "position_ids", dtype: "int64", shape: ["batch", "length"] },
        { name: "expert_mask", dtype: "float32", shape: ["blocks", "block_length", "window_experts"] },
    ];
    for (const layer of config.expertLayers) {
        const shape = ["blocks", "window_experts"];
        inputs.push({ name: `expert_key.${layer}`, dtype: "float32", shape: [...shape, keySize] });
        inputs.push({ name: `expert_value.${layer}`, dtype: graph.windowDtype, shape: [...shape, config.hiddenSize] });
        if (graph.windowDtype === "int8") {
            const scaleShape = ["blocks", 1, "window_experts"];
            inputs.push({ name: `expert_value_scale.${layer}`, dtype: "float32", shape: scaleShape });
        }
    }
    return inputs;
}

/** Return the inputs for the experts of the tokens themselves. */
function presentInputs({ expertLayers, expertValueShape }: ModelConfig): TensorInfo[] {
    const shape = ["batch", "length", ...expertValueShape];
    return expertLayers.map((layer) => ({ name: `expert_value.${layer}`, dtype: "float32", shape }));
}

/** Return the caches of other layers that layers use, with the numbers of these layers. */
function sharedCaches({ kvCaches, sharedKvCaches }: ModelConfig): KvCacheShape[] {
    const caches = new Map(kvCaches.map((cache) => [cache.layer, cache]));
    return [...sharedKvCaches].map(([layer, source]) => ({ ...caches.get(source)!, layer }));
}

function cacheTensors(
    prefix: "past_key_values" | "present",
    caches: readonly KvCacheShape[],
    { kvDtype }: Graph,
): TensorInfo[] {
    return caches.flatMap((cache) => {
        const shape = ["batch", cache.heads, "max_length", cache.headDim];
        return cacheNames(prefix, cache).map((name) => ({ name, dtype: kvDtype, shape }));
    });
}

/**
 * Check that the inputs and outputs of a file of profile "cpu" in the manifest are those that follow from the model
 * (check 10). `where` is the path of the graph.
 *
 * @throws BundleError They are different.
 */
export function checkInterface(config: ModelConfig, graph: Graph, file: GraphFile, where: string): void {
    const { inputs, outputs } = graphInterface(config, graph);
    compare(file.inputs, inputs, `${where}: its inputs in the manifest`);
    compare(file.outputs, outputs, `${where}: its outputs in the manifest`);
}

function compare(found: readonly TensorInfo[], expected: readonly TensorInfo[], where: string): void {
    for (let i = 0; i < Math.max(found.length, expected.length); i++) {
        const one = shown(found[i]);
        const other = shown(expected[i]);
        if (one !== other) {
            throw new BundleError(
                `${where}: found ${one.slice(0, 200)}, expected ${other}, which follows from the model`,
            );
        }
    }
}

/** Return a tensor as text. Different tensors have different texts. */
function shown(tensor: TensorInfo | undefined): string {
    if (tensor === undefined) return "no further one";
    return `${JSON.stringify(tensor.name)} ${tensor.dtype} ${JSON.stringify(tensor.shape)}`;
}
