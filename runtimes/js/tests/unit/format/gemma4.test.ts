import { describe, expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import { graphInterface, sharedOutputs } from "../../../src/format/graph-interface.js";
import { parseJson } from "../../../src/format/json.js";
import type { Graph, TableDType } from "../../../src/format/manifest.js";
import { parseGraphs } from "../../../src/format/manifest-graphs.js";
import { recordFields } from "../../../src/format/record.js";
import { RecordDecoder } from "../../../src/format/record-decoder.js";
import { gemma4 } from "../support/gemma4.js";

test("the configuration has a KV cache for each layer of its own, and the sources of the others", () => {
    expect(gemma4()).toEqual({
        profiles: ["cpu"],
        vocabSize: 50,
        hiddenSize: 24,
        maxPositionEmbeddings: 100,
        expertLayers: [0, 1, 2, 3, 4],
        expertValueShape: [64],
        expertWindow: 0,
        expertAttention: undefined,
        kvCaches: [
            { layer: 0, heads: 2, headDim: 8 },
            { layer: 1, heads: 2, headDim: 12 },
            { layer: 2, heads: 2, headDim: 8 },
        ],
        sharedKvCaches: new Map([
            [3, 2],
            [4, 1],
        ]),
    });
});

test("a model may share no cache, cap no logits and rotate whole heads", () => {
    const config = gemma4({ num_kv_shared_layers: 0, final_logit_softcapping: 0, partial_rotary_factor: 1 });
    expect(config.kvCaches.map(({ headDim }) => headDim)).toEqual([8, 12, 8, 8, 12]);
    expect(config.sharedKvCaches.size).toBe(0);
});

test.each<[string, unknown, string]>([
    ["model_type", "gemma4", 'expected "molkv" or "mole" or "gemma4_text"'],
    ["num_experts", 2, 'found the unknown field "num_experts"'],
    ["sliding_window", undefined, 'found no field "sliding_window"'],
    ["sliding_window", 0, "sliding_window: found 0, expected 1 to 2147483647"],
    ["vocab_size", 2 ** 31, "vocab_size: found 2147483648, expected 1 to 2147483647"],
    ["num_attention_heads", 3, "num_attention_heads: found 3, expected a multiple of num_key_value_heads, 2"],
    ["head_dim", 7, "head_dim: found 7, expected an even number"],
    ["global_head_dim", 9, "global_head_dim: found 9, expected an even number"],
    ["global_head_dim", 0, "global_head_dim: found 0, expected 1 to"],
    ["num_hidden_layers", 65_537, "num_hidden_layers: found 65537, expected 1 to 65536"],
    ["num_hidden_layers", 6, "layer_types: found 5 layers, expected 6, as num_hidden_layers says"],
    ["layer_types", ["sliding_attention"], "layer_types: found 1 layers, expected 5"],
    ["layer_types", Array(5).fill("attention"), 'layer_types[0]: found "attention", expected "sliding_attention" or'],
    ["num_kv_shared_layers", -1, "num_kv_shared_layers: found -1, expected 0 to 4"],
    ["num_kv_shared_layers", 5, "num_kv_shared_layers: found 5, expected 0 to 4"],
    ["num_kv_shared_layers", 4, "found 4, expected fewer, since no layer before layer 1 has full_attention"],
    ["hidden_size_per_layer_input", 0, "hidden_size_per_layer_input: found 0"],
    ["max_position_embeddings", 2 ** 24 + 1, "max_position_embeddings: found 16777217"],
    ["rms_norm_eps", 0, "rms_norm_eps: found 0, expected a number above 0"],
    ["sliding_rope_theta", 0, "sliding_rope_theta: found 0, expected a number above 0"],
    ["full_rope_theta", -1, "full_rope_theta: found -1, expected a number above 0"],
    ["partial_rotary_factor", 0, "partial_rotary_factor: found 0, expected a number above 0"],
    ["partial_rotary_factor", 1.5, "partial_rotary_factor: found 1.5, expected a number above 0, at most 1"],
    ["final_logit_softcapping", -0.5, "final_logit_softcapping: found -0.5, expected a number of at least 0"],
    ["use_double_wide_mlp", 1, "use_double_wide_mlp: found an integer, expected a boolean"],
    ["tie_word_embeddings", "yes", "tie_word_embeddings: found a text, expected a boolean"],
])("%s: %j is refused", (name, value, why) => {
    expect(() => gemma4({ [name]: value })).toThrow(BundleError);
    expect(() => gemma4({ [name]: value })).toThrow(why);
});

test("the only profile is cpu", () => {
    const graphs = (profile: string) => parseJson(JSON.stringify({ [profile]: {} }), "m");
    expect(() => parseGraphs(graphs("coreml"), gemma4())).toThrow("found a profile of this name, expected cpu");
    expect(() => parseGraphs(graphs("cpu"), gemma4())).toThrow('found no field "files"');
});

describe("a record", () => {
    test.each<[TableDType, string, number[] | undefined, number[]]>([
        ["float32", "float32", undefined, [0, 96, 352, 608, 864, 1120]],
        ["float16", "float16", undefined, [0, 48, 176, 304, 432, 560]],
        ["int8", "float32", [1], [0, 48, 52, 116, 120, 184, 188, 252, 256, 320, 324]],
        ["int4", "float16", [2], [0, 48, 52, 84, 88, 120, 124, 156, 160, 192, 196]],
        ["nf4", "float16", [1], [0, 48, 52, 84, 88, 120, 124, 156, 160, 192, 196]],
    ])("of %s has scales and a value for each layer", (dtype, scaleDtype, scaleShape, offsets) => {
        const { fields } = recordFields(gemma4(), dtype);
        const plain = dtype === "float32" ? "float32" : "float16";
        const layers = [0, 1, 2, 3, 4].flatMap((layer) => {
            const value = { name: `expert_value.${layer}`, dtype, shape: [64] };
            if (scaleShape === undefined) return [value];
            return [{ name: `expert_scale.${layer}`, dtype: scaleDtype, shape: scaleShape }, value];
        });
        const expected = [{ name: "embedding", dtype: plain, shape: [24] }, ...layers];
        expect(fields).toEqual(expected.map((field, i) => ({ ...field, offset: offsets[i] })));
    });

    test("of another size of values than d is checked", () => {
        expect(() => recordFields(gemma4({ hidden_size_per_layer_input: 96 }), "nf4")).toThrow(
            "found nf4 for values of 96 numbers, expected a multiple of 64 numbers",
        );
        recordFields(gemma4({ hidden_size_per_layer_input: 96 }), "int4");
    });

    test("is decoded with the scale of each group", () => {
        const config = gemma4();
        const { fields, stride } = recordFields(config, "int4");
        const record = new Uint8Array(stride);
        const offset = (name: string): number => fields.find((field) => field.name === name)!.offset;
        // 1 and -2 as float16; the codes 0, 1, 2, ... of 4 bits.
        record.set([0x00, 0x3c, 0x00, 0xc0], offset("expert_scale.4"));
        for (let i = 0; i < 32; i++) record[offset("expert_value.4") + i] = ((2 * i) % 16) | (((2 * i + 1) % 16) << 4);
        const decoder = new RecordDecoder({ rows: 1, id: "", dtype: "int4", stride, fields, shards: [] }, config);
        const out = new Float32Array(66).fill(7);
        decoder.values(record, 4, out, 1);
        const expected = Array.from({ length: 64 }, (_, i) => ((i % 16) - 8) * (i < 32 ? 1 : -2));
        expect([...out]).toEqual([7, ...expected, 7]);
    });
});

test("the graph has caches of two sizes, and outputs of shared caches at its end", () => {
    const graph = { kvDtype: "float32", windowDtype: "float32" } as Graph;
    const { inputs, outputs } = graphInterface(gemma4(), graph);
    const shown = (tensors: typeof inputs): string[] => {
        return tensors.map(({ name, dtype, shape }) => `${name} ${dtype} ${shape.join()}`);
    };
    expect(shown(inputs)).toEqual([
        "inputs_embeds float32 batch,length,24",
        ...[0, 1, 2, 3, 4].map((layer) => `expert_value.${layer} float32 batch,length,64`),
        "seqlens_k int32 batch",
        "total_sequence_length int32 ",
        "logits_to_keep int64 1",
        "past_key_values.0.key float32 batch,2,max_length,8",
        "past_key_values.0.value float32 batch,2,max_length,8",
        "past_key_values.1.key float32 batch,2,max_length,12",
        "past_key_values.1.value float32 batch,2,max_length,12",
        "past_key_values.2.key float32 batch,2,max_length,8",
        "past_key_values.2.value float32 batch,2,max_length,8",
    ]);
    const sizes = [8, 12, 8, 8, 12];
    expect(shown(outputs)).toEqual([
        "logits float32 batch,logits_length,50",
        ...sizes.flatMap((size, layer) =>
            ["key", "value"].map((kind) => `present.${layer}.${kind} float32 batch,2,max_length,${size}`),
        ),
    ]);
    expect(sharedOutputs(gemma4())).toEqual(["present.3.key", "present.3.value", "present.4.key", "present.4.value"]);
});
