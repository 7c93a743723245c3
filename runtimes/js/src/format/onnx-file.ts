/** Decodes an ONNX file: the fields that a dense graph may have (docs/bundle-format.md, "What a graph may hold"). */

import { BundleError } from "../errors.js";
import type { AttributeType } from "./operators.js";
import type { ProtobufField } from "./protobuf.js";
import { BYTES, FIXED32, ProtobufReader, VARINT } from "./protobuf.js";

export interface OnnxTensor {
    readonly name: string;
    readonly shape: readonly number[];
    readonly dataType: number;
    readonly dataLocation: number;
    /** Bytes of `raw_data`; undefined: the field is missing. */
    readonly rawSize: number | undefined;
    /** Keys and values of `external_data`. */
    readonly externalData: readonly (readonly [string, string])[];
}

export interface OnnxAttribute {
    readonly name: string;
    readonly type: number;
    /** The types of the fields that hold a value. */
    readonly values: readonly AttributeType[];
    readonly integers: readonly number[];
    readonly tensor: OnnxTensor | undefined;
}

export interface OnnxNode {
    readonly name: string;
    readonly opType: string;
    readonly domain: string;
    readonly inputs: readonly string[];
    readonly outputs: readonly string[];
    readonly attributes: readonly OnnxAttribute[];
}

export interface OnnxFile {
    readonly opsets: readonly { readonly domain: string; readonly version: number }[];
    readonly inputs: readonly string[];
    readonly outputs: readonly string[];
    readonly initializers: readonly OnnxTensor[];
    readonly nodes: readonly OnnxNode[];
}

type FieldKind = "integer" | "float" | "bytes" | "text";

/** A field of a message: what it holds, and whether it may be repeated. */
interface FieldRule {
    readonly name: string;
    readonly kind: FieldKind;
    readonly repeated: boolean;
}

/** The allowed fields of a message by their numbers in onnx.proto. */
interface MessageRule {
    readonly name: string;
    readonly fields: ReadonlyMap<number, FieldRule>;
    /** Fields that must be there. Otherwise messages of two bytes would need many bytes of memory. */
    readonly required: readonly string[];
}

/** "7 graph bytes" is a field; a `*` behind the kind means that it may be repeated. */
function message(name: string, fields: readonly string[], required: readonly string[] = []): MessageRule {
    const rules = fields.map((field): [number, FieldRule] => {
        const [number, fieldName, kind] = field.split(" ") as [string, string, string];
        const repeated = kind.endsWith("*");
        return [Number(number), { name: fieldName, kind: kind.replace("*", "") as FieldKind, repeated }];
    });
    return { name, fields: new Map(rules), required };
}

const MODEL = message(
    "ModelProto",
    ["1 ir_version integer", "2 producer_name bytes", "7 graph bytes", "8 opset_import bytes*", "14 metadata bytes*"],
    ["graph"],
);
const OPSET = message("OperatorSetIdProto", ["1 domain text", "2 version integer"], ["version"]);
const GRAPH = message("GraphProto", [
    "1 node bytes*",
    "2 name bytes",
    "5 initializer bytes*",
    "11 input bytes*",
    "12 output bytes*",
    "13 value_info bytes*",
]);
const NODE = message(
    "NodeProto",
    [
        "1 input text*",
        "2 output text*",
        "3 name text",
        "4 op_type text",
        "5 attribute bytes*",
        "7 domain text",
        "9 metadata_props bytes*",
    ],
    ["output", "op_type"],
);
const ATTRIBUTE = message(
    "AttributeProto",
    ["1 name text", "2 f float", "3 i integer", "4 s bytes", "5 t bytes", "8 ints integer*", "20 type integer"],
    ["name", "type"],
);
const TENSOR = message(
    "TensorProto",
    [
        "1 dims integer*",
        "2 data_type integer",
        "8 name text",
        "9 raw_data bytes",
        "13 external_data bytes*",
        "14 data_location integer",
    ],
    ["data_type"],
);
const VALUE = message("ValueInfoProto", ["1 name text", "2 type bytes"], ["name"]);
const ENTRY = message("StringStringEntryProto", ["1 key text", "2 value text"], ["key"]);

/** The fields of a decoded message, by their names in onnx.proto. */
class Fields {
    private readonly found = new Map<string, ProtobufField[]>();
    private readonly decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    private readonly rule: MessageRule;
    private readonly where: string;

    /** @throws BundleError A field is not allowed, is repeated, or has a wrong type; or a required field is missing. */
    constructor(rule: MessageRule, content: Uint8Array, where: string) {
        this.rule = rule;
        this.where = where;
        const reader = new ProtobufReader(content, where);
        for (let field = reader.next(); field !== undefined; field = reader.next()) this.add(field);
        for (const name of rule.required) if (!this.has(name)) this.refuse(name, "no such field");
    }

    has(name: string): boolean {
        return this.found.has(name);
    }

    integer(name: string): number {
        return this.all(name)[0]?.integer ?? 0;
    }

    integers(name: string): number[] {
        return this.all(name).map(({ integer }) => integer);
    }

    bytes(name: string): Uint8Array | undefined {
        return this.all(name)[0]?.bytes;
    }

    text(name: string): string {
        return this.texts(name)[0] ?? "";
    }

    texts(name: string): string[] {
        return this.all(name).map(({ bytes }) => {
            try {
                return this.decoder.decode(bytes);
            } catch {
                return this.refuse(name, "a text that is not UTF-8");
            }
        });
    }

    /** Decode each of the messages in a field. */
    messages<T>(name: string, decode: (content: Uint8Array, where: string) => T): T[] {
        return this.all(name).map(({ bytes }) => decode(bytes, this.where));
    }

    private add(field: ProtobufField): void {
        const rule = this.rule.fields.get(field.number);
        if (rule === undefined) {
            throw new BundleError(
                `${this.where}: found field ${field.number} of ${this.rule.name}, which is not allowed in a dense ` +
                    "graph; export the bundle again",
            );
        }
        const wire = rule.kind === "integer" ? VARINT : rule.kind === "float" ? FIXED32 : BYTES;
        if (field.wire !== wire) this.refuse(rule.name, "a wrong wire type");
        const found = this.found.get(rule.name);
        if (found === undefined) {
            this.found.set(rule.name, [field]);
        } else {
            // Readers differ in the value that they use.
            if (!rule.repeated) this.refuse(rule.name, "it a second time");
            found.push(field);
        }
    }

    private all(name: string): readonly ProtobufField[] {
        return this.found.get(name) ?? [];
    }

    private refuse(field: string, found: string): never {
        throw new BundleError(
            `${this.where}: is not an ONNX file: ${this.rule.name}.${field}: found ${found}; export the bundle again`,
        );
    }
}

/**
 * Decode an ONNX file.
 *
 * @throws BundleError The file is damaged, or has a field that a dense graph may not have.
 */
export function decodeOnnx(content: Uint8Array, where: string): OnnxFile {
    const model = new Fields(MODEL, content, where);
    const graph = new Fields(GRAPH, model.bytes("graph")!, where);
    const decodeName = (value: Uint8Array): string => new Fields(VALUE, value, where).text("name");
    return {
        opsets: model.messages("opset_import", decodeOpset),
        inputs: graph.messages("input", decodeName),
        outputs: graph.messages("output", decodeName),
        initializers: graph.messages("initializer", decodeTensor),
        nodes: graph.messages("node", decodeNode),
    };
}

function decodeOpset(content: Uint8Array, where: string): { domain: string; version: number } {
    const fields = new Fields(OPSET, content, where);
    return { domain: fields.text("domain"), version: fields.integer("version") };
}

function decodeNode(content: Uint8Array, where: string): OnnxNode {
    const fields = new Fields(NODE, content, where);
    return {
        name: fields.text("name"),
        opType: fields.text("op_type"),
        domain: fields.text("domain"),
        inputs: fields.texts("input"),
        outputs: fields.texts("output"),
        attributes: fields.messages("attribute", decodeAttribute),
    };
}

const VALUE_FIELDS: readonly (readonly [string, AttributeType])[] = [
    ["f", "float"],
    ["i", "int"],
    ["s", "string"],
    ["t", "tensor"],
    ["ints", "ints"],
];

function decodeAttribute(content: Uint8Array, where: string): OnnxAttribute {
    const fields = new Fields(ATTRIBUTE, content, where);
    return {
        name: fields.text("name"),
        type: fields.integer("type"),
        values: VALUE_FIELDS.filter(([field]) => fields.has(field)).map(([, type]) => type),
        integers: [...fields.integers("i"), ...fields.integers("ints")],
        tensor: fields.messages("t", decodeTensor)[0],
    };
}

function decodeTensor(content: Uint8Array, where: string): OnnxTensor {
    const fields = new Fields(TENSOR, content, where);
    return {
        name: fields.text("name"),
        shape: fields.integers("dims"),
        dataType: fields.integer("data_type"),
        dataLocation: fields.integer("data_location"),
        rawSize: fields.bytes("raw_data")?.length,
        externalData: fields.messages("external_data", decodeEntry),
    };
}

function decodeEntry(content: Uint8Array, where: string): readonly [string, string] {
    const fields = new Fields(ENTRY, content, where);
    return [fields.text("key"), fields.text("value")];
}
