/** Check 14 of docs/bundle-format.md, "What a graph may hold": some invalid files crash ONNX Runtime. */

import { BundleError } from "../errors.js";
import type { OnnxAttribute, OnnxFile, OnnxNode, OnnxTensor } from "./onnx-file.js";
import { decodeOnnx } from "./onnx-file.js";
import type { Operator } from "./operators.js";
import { ATTRIBUTE_TYPES, findOperator } from "./operators.js";

/** Some operators of ONNX Runtime store dimensions and attributes in 32 bits. */
const LARGEST_INTEGER = 2 ** 31 - 1;
const MOST_DIMENSIONS = 8;

/** Bytes of a number, by ONNX's numbers of float32, uint8, int8, int64 and float16. */
const ITEM_BYTES: ReadonlyMap<number, number> = new Map([
    [1, 4],
    [2, 1],
    [3, 1],
    [7, 8],
    [10, 2],
]);

/** The file that holds the weights of a graph, `graphs.*.data`. */
export interface DataFile {
    readonly dataName: string;
    /** Bytes. */
    readonly dataSize: number;
}

/**
 * Check that an ONNX file holds only what a graph may hold. `where` names the file.
 *
 * @throws BundleError It holds something else.
 */
export function checkGraph(bytes: Uint8Array, where: string, data: DataFile): void {
    new GraphCheck(where, data).run(decodeOnnx(bytes, where));
}

class GraphCheck {
    private readonly where: string;
    private readonly data: DataFile;
    private readonly defined = new Set<string>();

    constructor(where: string, data: DataFile) {
        this.where = where;
        this.data = data;
    }

    run(file: OnnxFile): void {
        this.checkOpsets(file);
        for (const name of file.inputs) this.define(name);
        for (const tensor of file.initializers) {
            this.checkTensor(tensor);
            this.define(tensor.name);
        }
        for (const node of file.nodes) {
            this.checkNode(node);
            for (const name of node.inputs) if (name !== "") this.checkDefined(name);
            for (const name of node.outputs) this.define(name);
        }
        for (const name of file.outputs) this.checkDefined(name);
    }

    private checkOpsets(file: OnnxFile): void {
        const domains = new Set<string>();
        for (const { domain, version } of file.opsets) {
            const known = (domain === "" && version === 22) || (domain === "com.microsoft" && version === 1);
            if (!known || domains.has(domain)) {
                this.refuse(
                    `found operator set ${version} of the domain ${shown(domain)}, expected 22 of the default domain ` +
                        "and, at most once, 1 of com.microsoft",
                );
            }
            domains.add(domain);
        }
        if (!domains.has("")) this.refuse("found no operator set of the default domain, expected version 22");
    }

    private define(name: string): void {
        if (name === "") this.refuse("found a value without a name, expected a name");
        if (this.defined.has(name)) this.refuse(`found ${shown(name)} defined twice, expected different names`);
        this.defined.add(name);
    }

    private checkDefined(name: string): void {
        if (!this.defined.has(name)) this.refuse(`found ${shown(name)}, which is not defined before its use`);
    }

    private checkNode(node: OnnxNode): void {
        const title = `node ${shown(node.name)} (${shown(node.opType)})`;
        const allowed = findOperator(node.domain, node.opType);
        if (allowed === undefined) {
            return this.refuse(`${title}: found an operator of the domain ${shown(node.domain)} that is not allowed`);
        }
        this.checkCount(`${title}: inputs`, node.inputs, allowed.inputs);
        this.checkCount(`${title}: outputs`, node.outputs, [allowed.outputs]);
        const names = new Set<string>();
        for (const attribute of node.attributes) {
            if (!isSound(attribute, allowed) || names.has(attribute.name)) {
                this.refuse(`${title}: found an attribute ${shown(attribute.name)} whose name or value is not allowed`);
            }
            names.add(attribute.name);
            if (attribute.tensor === undefined) continue;
            if (attribute.tensor.externalData.length > 0) {
                this.refuse(`${title}: found a tensor in another file, expected it in the graph`);
            }
            this.checkTensor(attribute.tensor);
        }
    }

    private checkCount(title: string, names: readonly string[], allowed: readonly string[]): void {
        const found = names.map((name) => (name === "" ? "-" : "x")).join("");
        if (allowed.includes(found)) return;
        this.refuse(
            `${title}: found "${found.slice(0, 30)}", expected "${allowed.join('" or "')}" (x: has a name, -: empty)`,
        );
    }

    private checkTensor(tensor: OnnxTensor): void {
        const bytes = this.tensorBytes(tensor);
        const title = `tensor ${shown(tensor.name)}`;
        if (tensor.dataLocation === 0 && tensor.externalData.length === 0) {
            const found = tensor.rawSize ?? 0;
            if (found !== bytes) this.refuse(`${title}: found ${found} bytes, expected ${bytes}`);
            return;
        }
        const values = new Map(tensor.externalData);
        const location = values.get("location") ?? "";
        const offset = decimal(values.get("offset"));
        const length = decimal(values.get("length"));
        // Three entries with three values: none is missing, occurs twice or has another key.
        const whole = tensor.externalData.length === 3 && offset >= 0 && length >= 0;
        const fits = location === this.data.dataName && length === bytes && offset + length <= this.data.dataSize;
        if (whole && fits && tensor.rawSize === undefined && tensor.dataLocation === 1) return;
        this.refuse(
            `${title}: found its data in ${shown(location)} at byte ${offset} with length ${length}, expected ` +
                `${bytes} bytes inside ${this.data.dataName}, which has ${this.data.dataSize} bytes`,
        );
    }

    /** Return the bytes of a tensor; rounded if they are more than 2^53. */
    private tensorBytes({ name, dataType, shape }: OnnxTensor): number {
        const itemBytes = ITEM_BYTES.get(dataType);
        const sound = shape.length <= MOST_DIMENSIONS && shape.every((size) => size >= 0 && size <= LARGEST_INTEGER);
        if (itemBytes === undefined || !sound) {
            return this.refuse(
                `tensor ${shown(name)}: found the data type ${dataType} and ${shape.length} dimensions, expected the ` +
                    `data type 1, 2, 3, 7 or 10 and at most ${MOST_DIMENSIONS} dimensions, each from 0 to ` +
                    `${LARGEST_INTEGER}`,
            );
        }
        return shape.reduce((product, size) => product * size, itemBytes);
    }

    private refuse(found: string): never {
        throw new BundleError(`${this.where}: ${found}; export the bundle again`);
    }
}

/** Whether an attribute has one value, of the allowed type, and its integers are from -1 to 2^31 - 1. */
function isSound(attribute: OnnxAttribute, allowed: Operator): boolean {
    const type = allowed.attributes.get(attribute.name);
    if (type === undefined || attribute.type !== ATTRIBUTE_TYPES[type]) return false;
    if (attribute.values.length !== 1 || attribute.values[0] !== type) return false;
    return attribute.integers.every((integer) => integer >= -1 && integer <= LARGEST_INTEGER);
}

/** Return the value of a decimal number of 1 to 18 digits, or -1 for any other text. */
function decimal(digits: string | undefined): number {
    return digits !== undefined && /^[0-9]{1,18}$/.test(digits) ? Number(digits) : -1;
}

/** A name of the file for a message: in quotes, in one line and not long. */
function shown(name: string): string {
    return JSON.stringify(name.slice(0, 100));
}
