/** Changes of ONNX files, which keep all bytes that they do not change. */

import { BundleError } from "../errors.js";
import { BYTES, bytesField, joinBytes, ProtobufReader } from "./protobuf.js";

/** The numbers of onnx.proto: ModelProto.graph, GraphProto.output, ValueInfoProto.name. */
const MODEL_GRAPH = 7;
export const GRAPH_OUTPUT = 12;
export const VALUE_NAME = 1;

const NOTHING = new Uint8Array(0);

/** Return an ONNX file with the graph that `edit` returns. @throws BundleError The file is no ONNX file. */
export function editGraph(model: Uint8Array, where: string, edit: (graph: Uint8Array) => Uint8Array): Uint8Array {
    return editFields(model, where, (number, content) =>
        number === MODEL_GRAPH ? bytesField(MODEL_GRAPH, edit(content)) : undefined,
    );
}

/** Return the message with the fields that `edit` returns; undefined: the field stays as it is. */
export function editFields(
    message: Uint8Array,
    where: string,
    edit: (number: number, content: Uint8Array) => Uint8Array | undefined,
): Uint8Array {
    const parts: Uint8Array[] = [];
    const reader = new ProtobufReader(message, where);
    for (let field = reader.next(); field !== undefined; field = reader.next()) {
        const edited = field.wire === BYTES ? edit(field.number, field.bytes) : undefined;
        parts.push(edited ?? field.whole);
    }
    return joinBytes(parts);
}

/** Return the name of an input or output. */
export function valueName(value: Uint8Array, where: string): string {
    const reader = new ProtobufReader(value, where);
    for (let field = reader.next(); field !== undefined; field = reader.next()) {
        if (field.number === VALUE_NAME && field.wire === BYTES) return new TextDecoder().decode(field.bytes);
    }
    return "";
}

/**
 * Return an ONNX file without some outputs of its graph. ONNX Runtime then returns fewer arrays.
 *
 * @throws BundleError The graph has no such output, or the file is no ONNX file.
 */
export function dropOutputs(model: Uint8Array, names: ReadonlySet<string>, where: string): Uint8Array {
    const rest = new Set(names);
    const edited = editGraph(model, where, (graph) =>
        editFields(graph, where, (number, content) =>
            number === GRAPH_OUTPUT && rest.delete(valueName(content, where)) ? NOTHING : undefined,
        ),
    );
    for (const name of rest) {
        throw new BundleError(`${where}: found no output ${name}, which the manifest has; export the bundle again`);
    }
    return edited;
}
