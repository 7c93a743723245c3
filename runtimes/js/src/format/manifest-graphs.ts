/** The field `graphs` of a manifest: types, and the relations between a profile, its files and the model. */

import type { JsonValue } from "./json.js";
import type { Dimension, Graph, GraphFile, ModelConfig, TensorInfo } from "./manifest.js";

const largestSize = 2 ** 31 - 1;

/** Parse and check the graphs of all profiles, in the order of the file. */
export function parseGraphs(graphs: JsonValue, model: ModelConfig): Graph[] {
    const found = [...graphs.fields()].map(([profile, graph]) => {
        const known = model.profiles.find((one) => one === profile);
        if (known !== undefined) return parseGraph(known, graph, model);
        throw graph.error("a profile of this name", model.profiles.join(" or "));
    });
    if (found.length === 0) throw graphs.error("no profile", "at least one");
    return found;
}

function parseGraph(profile: Graph["profile"], graph: JsonValue, model: ModelConfig): Graph {
    graph.expectFields([
        "files",
        "data",
        "golden",
        "dense_dtype",
        "kv_dtype",
        "window_dtype",
        "block_size",
        "context_length",
        "expert_window",
        "min_onnxruntime",
    ]);
    const isStatic = profile !== "cpu";
    const denseDtypes = isStatic ? ["float32", "float16", "qdq-int8"] : ["float32", "float16", "int8", "int4"];
    const denseDtype = graph.get("dense_dtype").oneOf(denseDtypes);
    const hasBlocks = denseDtype === "int4";
    const contextLength = graph.get("context_length").integer(1, model.maxPositionEmbeddings);
    const hasInt8Window = !isStatic && model.expertAttention !== undefined;
    return {
        profile,
        files: parseFiles(graph.get("files"), isStatic, contextLength),
        data: graph.get("data").text(),
        golden: graph.get("golden").text(),
        denseDtype,
        kvDtype: graph.get("kv_dtype").oneOf(["float32", isStatic ? "float16" : "int8"]),
        windowDtype: graph.get("window_dtype").oneOf(hasInt8Window ? ["float32", "int8"] : ["float32"]),
        blockSize: graph.get("block_size").integer(hasBlocks ? 1 : 0, hasBlocks ? largestSize : 0),
        contextLength,
        expertWindow: parseWindow(graph.get("expert_window"), model.expertWindow, isStatic),
        minOnnxruntime: parseVersion(graph.get("min_onnxruntime")),
    };
}

/** Parse the window of the experts, which a static graph may lower to 1. */
function parseWindow(value: JsonValue, window: number, isStatic: boolean): number {
    return value.integer(isStatic ? Math.min(1, window) : window, window);
}

function parseVersion(value: JsonValue): string {
    const version = value.text();
    if (/^\d{1,5}\.\d{1,5}\.\d{1,5}$/.test(version)) return version;
    throw value.error("another text", 'a version such as "1.25.1"');
}

/** Parse the files of a graph: one of length 0 in profile "cpu"; else static graphs, in ascending order from 1. */
function parseFiles(files: JsonValue, isStatic: boolean, contextLength: number): GraphFile[] {
    const found: GraphFile[] = [];
    for (const file of files.list()) {
        file.expectFields(["file", "length", "inputs", "outputs"]);
        const before = found.at(-1);
        if (before !== undefined && !isStatic) throw file.error("a second file", "one file in profile cpu");
        const first = isStatic ? 1 : 0;
        found.push({
            file: file.get("file").text(),
            length:
                before === undefined
                    ? file.get("length").integer(first, first)
                    : file.get("length").integer(before.length + 1, contextLength),
            inputs: file.get("inputs").list().map(parseTensor),
            outputs: file.get("outputs").list().map(parseTensor),
        });
    }
    if (found.length === 0) throw files.error("no file", "at least one");
    return found;
}

function parseTensor(tensor: JsonValue): TensorInfo {
    tensor.expectFields(["name", "dtype", "shape"]);
    return {
        name: tensor.get("name").text(),
        dtype: tensor.get("dtype").oneOf(["float32", "float16", "int64", "int32", "int8"]),
        shape: tensor.get("shape").list().map(parseDimension),
    };
}

function parseDimension(size: JsonValue): Dimension {
    return size.type === "text" ? size.text() : size.integer(0, Number.MAX_SAFE_INTEGER);
}
