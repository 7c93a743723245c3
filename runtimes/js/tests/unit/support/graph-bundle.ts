/** Reads conformance bundles without the code of the driver, and makes the inputs of their graphs. */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { GraphFiles, GraphSession, HostTensor, KvCache } from "../../../src/backend.js";

const BUNDLES = fileURLToPath(new URL("../../../../conformance/bundles/", import.meta.url));

interface ManifestJson {
    readonly model: Readonly<Record<string, number>>;
    readonly graphs: { readonly cpu: { readonly kv_dtype: "float32" | "int8"; readonly data: string } };
    readonly tables: {
        readonly experts: {
            readonly dtype: string;
            readonly stride: number;
            readonly shards: readonly { readonly file: string; readonly data_offset: number }[];
        };
    };
}

/** A conformance bundle with one shard. */
export interface GraphBundle {
    readonly manifest: ManifestJson;
    readonly files: GraphFiles & { readonly data: { readonly content: Uint8Array } };
    /** The float32 embedding of an id. Records of dtype float32 only. */
    embedding(id: number): Float32Array;
}

export function readBundleFile(bundle: string, file: string): Uint8Array {
    return new Uint8Array(readFileSync(`${BUNDLES}${bundle}/${file}`));
}

export function readGraphBundle(name: string): GraphBundle {
    const manifest = JSON.parse(new TextDecoder().decode(readBundleFile(name, "manifest.json"))) as ManifestJson;
    const { model, graphs, tables } = manifest;
    const shard = tables.experts.shards[0]!;
    const records = readBundleFile(name, shard.file);
    const size = model.hidden_size!;
    return {
        manifest,
        files: {
            where: `${name}/model.onnx`,
            graph: readBundleFile(name, "model.onnx"),
            data: { name: graphs.cpu.data, content: readBundleFile(name, graphs.cpu.data) },
            caches: Array.from({ length: model.num_hidden_layers! }, (_, layer) => {
                return { layer, heads: model.num_key_value_heads!, headDim: model.head_dim! };
            }),
            kvDtype: graphs.cpu.kv_dtype,
        },
        embedding(id) {
            const at = shard.data_offset + id * tables.experts.stride;
            return new Float32Array(records.slice(at, at + 4 * size).buffer);
        },
    };
}

/** The tensors of a safetensors file of dtype F32 or I32. */
export function readTensors(bytes: Uint8Array): Map<string, { shape: number[]; data: Float32Array | Int32Array }> {
    const headerSize = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerSize))) as Record<
        string,
        { dtype: string; shape: number[]; data_offsets: [number, number] }
    >;
    const tensors = new Map<string, { shape: number[]; data: Float32Array | Int32Array }>();
    for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
        if (name === "__metadata__") continue;
        const [from, to] = data_offsets.map((offset) => 8 + headerSize + offset);
        const { buffer } = bytes.slice(from, to);
        tensors.set(name, { shape, data: dtype === "F32" ? new Float32Array(buffer) : new Int32Array(buffer) });
    }
    return tensors;
}

/** Run tokens of a dense model: `ids` has the new tokens of each sequence of the call. */
export async function runDense(
    bundle: GraphBundle,
    session: GraphSession,
    call: { cache: KvCache; sequence?: number; starts: number[]; ids: number[][]; keep: number },
): Promise<Float32Array> {
    const { cache, sequence, starts, ids, keep } = call;
    const length = ids[0]!.length;
    const ends = starts.map((start) => start + length);
    return session.run({
        inputs: {
            inputs_embeds: embeddings(bundle, ids),
            seqlens_k: { dtype: "int32", dims: [ids.length], data: Int32Array.from(ends, (end) => end - 1) },
            total_sequence_length: { dtype: "int32", dims: [], data: Int32Array.of(Math.max(...ends)) },
            logits_to_keep: { dtype: "int64", dims: [1], data: BigInt64Array.of(BigInt(keep)) },
        },
        cache,
        sequence,
        starts,
        length,
    });
}

function embeddings(bundle: GraphBundle, ids: number[][]): HostTensor {
    const size = bundle.manifest.model.hidden_size!;
    const flat = ids.flat();
    const data = new Float32Array(flat.length * size);
    flat.forEach((id, index) => {
        data.set(bundle.embedding(id), index * size);
    });
    return { dtype: "float32", dims: [ids.length, ids[0]!.length, size], data };
}

/** The text `index` of a bundle's golden vectors. */
export function goldenText(name: string, index: number): { ids: number[]; topIds: number[]; topLogits: Float32Array } {
    const tensors = readTensors(readBundleFile(name, "golden.safetensors"));
    const tensor = (part: string): Float32Array | Int32Array => tensors.get(`texts.${index}.${part}`)!.data;
    return {
        ids: [...tensor("input_ids")],
        topIds: [...tensor("top_ids")],
        topLogits: tensor("top_logits") as Float32Array,
    };
}
