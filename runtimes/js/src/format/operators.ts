/** The closed list of operators of docs/bundle-format.md, "What a graph may hold". */

/** The numbers of AttributeProto.type. */
export const ATTRIBUTE_TYPES = { float: 1, int: 2, string: 3, tensor: 4, ints: 7 } as const;

export type AttributeType = keyof typeof ATTRIBUTE_TYPES;

/** The inputs, outputs and attributes that nodes of an operator may have. */
export interface Operator {
    /** Alternatives with one character for each input: `x` has a name, `-` is empty. */
    readonly inputs: readonly string[];
    readonly outputs: string;
    readonly attributes: ReadonlyMap<string, AttributeType>;
}

function operator(inputs: string, outputs: string, attributes: Readonly<Record<string, AttributeType>> = {}): Operator {
    return { inputs: inputs.split(" "), outputs, attributes: new Map(Object.entries(attributes)) };
}

const STANDARD: ReadonlyMap<string, Operator> = new Map([
    ["Abs", operator("x", "x")],
    ["Add", operator("xx", "x")],
    ["Cast", operator("x", "x", { to: "int" })],
    ["CastLike", operator("xx", "x")],
    ["Concat", operator("xx xxx", "x", { axis: "int" })],
    ["Constant", operator("", "x", { value: "tensor", value_float: "float", value_ints: "ints" })],
    ["DequantizeLinear", operator("xxx", "x")],
    ["Div", operator("xx", "x")],
    ["Exp", operator("x", "x")],
    ["Gelu", operator("x", "x", { approximate: "string" })],
    ["MatMul", operator("xx", "x")],
    ["Max", operator("xx", "x")],
    ["Mul", operator("xx", "x")],
    ["QuantizeLinear", operator("xxx", "x")],
    ["ReduceMax", operator("xx", "x", { keepdims: "int" })],
    ["ReduceMean", operator("xx", "x", { keepdims: "int" })],
    ["Relu", operator("x", "x")],
    ["Reshape", operator("xx", "x")],
    ["Shape", operator("x", "x", { end: "int", start: "int" })],
    ["Sigmoid", operator("x", "x")],
    ["SimplifiedLayerNormalization", operator("xx", "x", { axis: "int", epsilon: "float", stash_type: "int" })],
    ["Slice", operator("xxxx xxxxx", "x")],
    ["Softmax", operator("x", "x", { axis: "int" })],
    ["Sqrt", operator("x", "x")],
    ["Squeeze", operator("xx", "x")],
    ["Sub", operator("xx", "x")],
    ["Tanh", operator("x", "x")],
    ["Transpose", operator("x", "x", { perm: "ints" })],
    ["Unsqueeze", operator("xx", "x")],
]);

const MICROSOFT: ReadonlyMap<string, Operator> = new Map([
    [
        "GroupQueryAttention",
        operator("x--xxxxxx x--xxxxxx---xx", "xxx", {
            do_rotary: "int",
            k_quant_type: "string",
            kv_cache_bit_width: "int",
            kv_num_heads: "int",
            local_window_size: "int",
            num_heads: "int",
            scale: "float",
            v_quant_type: "string",
        }),
    ],
    ["MatMulIntegerToFloat", operator("xxxxx", "x")],
    [
        "MatMulNBits",
        operator("xxx", "x", { K: "int", N: "int", accuracy_level: "int", bits: "int", block_size: "int" }),
    ],
    ["RotaryEmbedding", operator("xxxx", "x", { num_heads: "int" })],
    ["SkipSimplifiedLayerNormalization", operator("xxx", "xxxx", { epsilon: "float" })],
]);

/** Return the operator `name` of a domain, or undefined if it is not on the list. */
export function findOperator(domain: string, name: string): Operator | undefined {
    if (domain === "") return STANDARD.get(name);
    return domain === "com.microsoft" ? MICROSOFT.get(name) : undefined;
}
