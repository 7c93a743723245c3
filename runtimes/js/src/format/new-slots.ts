/**
 * Changes the graph of profile "cpu" such that it returns only the new slots of the KV cache.
 *
 * ONNX Runtime for JavaScript copies every output into JavaScript's memory. A copy of all slots in each step takes longer
 * than the step itself, so the changed graph gathers the slots that the host asks for.
 */

import { editFields, editGraph, GRAPH_OUTPUT, VALUE_NAME, valueName } from "./onnx-edit.js";
import { bytesField, integerField, joinBytes } from "./protobuf.js";

/** The additional input: int64 [K], the slots to return. */
export const NEW_SLOTS = "new_slots";

const PRESENT = "present.";
const NEW = "new.";
const SLOT_AXIS = 2;
/** The numbers of onnx.proto: GraphProto's fields, types. */
const GRAPH_NODE = 1;
const GRAPH_INPUT = 11;
const ELEMENT_TYPES = { float32: 1, int8: 3, int64: 7 } as const;
const ATTRIBUTE_INT = 2;

/** Return the name of the new output that stands in the place of the output `present`. */
export function newSlotsOutput(present: string): string {
    return NEW + present.slice(PRESENT.length);
}

/**
 * Return an ONNX file whose outputs `present.{l}.key` and `.value`, [B, Hkv, max_length, head_dim], are replaced by
 * `new.{l}.key` and `.value`, [B, Hkv, K, head_dim]: the slots that the input `new_slots` names. The graph has passed
 * `checkGraph`.
 *
 * @throws BundleError The file is no ONNX file.
 */
export function returnNewSlots(model: Uint8Array, kvDtype: "float32" | "int8", where: string): Uint8Array {
    return editGraph(model, where, (graph) => gatherSlots(graph, kvDtype, where));
}

function gatherSlots(graph: Uint8Array, kvDtype: "float32" | "int8", where: string): Uint8Array {
    const added: Uint8Array[] = [bytesField(GRAPH_INPUT, valueInfo(NEW_SLOTS, "int64"))];
    const edited = editFields(graph, where, (number, content) => {
        const name = number === GRAPH_OUTPUT ? valueName(content, where) : "";
        if (!name.startsWith(PRESENT)) return undefined;
        // All other nodes stand before the added ones, so these may use every name.
        added.push(bytesField(GRAPH_NODE, gatherNode(name)));
        return bytesField(GRAPH_OUTPUT, valueInfo(newSlotsOutput(name), kvDtype));
    });
    return joinBytes([edited, ...added]);
}

/** ValueInfoProto with a type (field 2) that is a tensor (field 1) of an element type (field 1) and any shape. */
function valueInfo(name: string, dtype: keyof typeof ELEMENT_TYPES): Uint8Array {
    const tensor = integerField(1, ELEMENT_TYPES[dtype]);
    return joinBytes([bytesField(VALUE_NAME, name), bytesField(2, bytesField(1, tensor))]);
}

/** NodeProto: input (1), output (2), name (3), op_type (4), attribute (5: name 1, type 20, i 3). */
function gatherNode(present: string): Uint8Array {
    const output = newSlotsOutput(present);
    const axis = [bytesField(1, "axis"), integerField(20, ATTRIBUTE_INT), integerField(3, SLOT_AXIS)];
    return joinBytes([
        bytesField(1, present),
        bytesField(1, NEW_SLOTS),
        bytesField(2, output),
        bytesField(3, output),
        bytesField(4, "Gather"),
        bytesField(5, joinBytes(axis)),
    ]);
}
