/** Saved sessions (docs/bundle-format.md, "The saved file"). */

import { RequestError } from "../errors.js";
import { cacheNames } from "./cache-names.js";
import { parseJson, quoted } from "./json.js";
import type { Graph, Manifest, ModelConfig } from "./manifest.js";
import { parseSafetensors, tensorNumbers, writeSafetensors, type Safetensors, type Tensor } from "./safetensors.js";
import { findText, sha256, sha256WithZeroedDigits } from "./sha256.js";

const version = "1";
const idsName = "input_ids";
const noDigits = "0".repeat(64);

/** The arrays of a KV cache. Float16 numbers are bit patterns. */
interface CacheArrays {
    readonly float32: Float32Array;
    readonly float16: Uint16Array;
    readonly int8: Int8Array;
}

/** How the numbers of each dtype are stored. `isFinite` gets the data of a tensor. */
const storages = {
    float32: {
        dtype: "F32",
        numbers: (data: Uint8Array) => tensorNumbers(data, Float32Array),
        isFinite: (data: Uint8Array) => lacksExponent(tensorNumbers(data, Uint32Array), 0x7f800000),
    },
    float16: {
        dtype: "F16",
        numbers: (data: Uint8Array) => tensorNumbers(data, Uint16Array),
        isFinite: (data: Uint8Array) => lacksExponent(tensorNumbers(data, Uint16Array), 0x7c00),
    },
    int8: {
        dtype: "I8",
        numbers: (data: Uint8Array) => tensorNumbers(data, Int8Array),
        isFinite: () => true,
    },
} as const;

/** What a session belongs to: the tables and the graphs of one profile of a bundle. */
export interface SessionOwner<DType extends keyof CacheArrays = "float32" | "int8"> {
    /** The id of the table "experts". */
    readonly tableId: string;
    /** See `sessionGraph`. */
    readonly graph: string;
    /** The model, with the graph's `context_length` as `maxPositionEmbeddings`. */
    readonly config: ModelConfig;
    readonly kvDtype: DType;
}

export type SessionMessages = readonly Readonly<Record<string, string>>[];

/** The content of a saved session. */
export interface SavedSession<Numbers = Float32Array | Int8Array> {
    /** All token ids of the text. */
    readonly ids: readonly number[];
    /** m: the number of first tokens that the KV cache holds. */
    readonly length: number;
    /** Keys and values of each KV cache of the model, each [Hkv, m, head_dim]. Parsed ones may be views of the file. */
    readonly layers: readonly { readonly key: Numbers; readonly value: Numbers }[];
    /** The messages of a chat; undefined: there are none. */
    readonly messages?: SessionMessages | undefined;
}

/** Return the SHA-256 that names the graphs of a profile in sessions. */
export async function sessionGraph(manifest: Manifest, graph: Graph): Promise<string> {
    const names = [...graph.files.map(({ file }) => file), graph.data];
    const hashes = names.map((name) => manifest.files.get(name)!.sha256);
    return sha256(new TextEncoder().encode(hashes.join("")));
}

/**
 * Return the content of a saved session of this owner, after the checks of "The saved file". `where` names the file.
 *
 * @throws RequestError The file is damaged, belongs to another bundle or graph, or is no saved session.
 */
export async function parseSession<DType extends keyof CacheArrays>(
    bytes: Uint8Array,
    owner: SessionOwner<DType>,
    where: string,
): Promise<SavedSession<CacheArrays[DType]>> {
    const file = parseSafetensors(bytes, where, (message) => new RequestError(message));
    const found = file.metadata.get("session_version") ?? "";
    if (found !== version) {
        throw refusal(where, "session_version", quoted(found), `"${version}"; is this a saved session?`);
    }
    await checkHash(bytes, file, where);
    const messages = parseMessages(file.metadata.get("messages"), where);
    checkOwner(file, owner, where);
    const ids = parseIds(file, owner.config, where);
    const { length, layers } = parseCache(file, owner, ids.length, where);
    return { ids, length, layers, messages };
}

/**
 * Return the bytes of a saved session, with its hash.
 *
 * @throws RequestError The messages are no list of objects of Unicode texts.
 */
export async function writeSession<DType extends keyof CacheArrays>(
    owner: SessionOwner<DType>,
    session: SavedSession<CacheArrays[DType]>,
): Promise<Uint8Array<ArrayBuffer>> {
    // The hash is the first field, so that its place is known, whatever the messages contain.
    const metadata = new Map([
        ["sha256", noDigits],
        ["session_version", version],
        ["tables", JSON.stringify({ experts: owner.tableId })],
        ["graph", owner.graph],
    ]);
    if (session.messages !== undefined) {
        const text = JSON.stringify(session.messages);
        // The check of a reader refuses texts that are not Unicode and values that are no texts.
        parseMessages(text, "session");
        metadata.set("messages", text);
    }
    const ids = Int32Array.from(session.ids);
    const tensors = new Map([[idsName, { dtype: "I32", shape: [ids.length], data: bytesOf(ids) }]]);
    session.layers.forEach(({ key, value }, index) => {
        const cache = owner.config.kvCaches[index]!;
        const shape = [cache.heads, session.length, cache.headDim];
        const { dtype } = storages[owner.kvDtype];
        const [keyName, valueName] = cacheNames("past_key_values", cache);
        tensors.set(keyName, { dtype, shape, data: bytesOf(key) });
        tensors.set(valueName, { dtype, shape, data: bytesOf(value) });
    });
    const bytes = writeSafetensors(metadata, tensors);
    const digits = new TextEncoder().encode(await sha256(bytes));
    bytes.set(digits, findText(bytes, noDigits));
    return bytes;
}

function bytesOf(numbers: ArrayBufferView): Uint8Array {
    return new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}

function refusal(where: string, field: string, found: string, expected: string): RequestError {
    return new RequestError(`${where}: ${field}: found ${found}, expected ${expected}`);
}

async function checkHash(bytes: Uint8Array, file: Safetensors, where: string): Promise<void> {
    const expected = file.metadata.get("sha256") ?? "";
    if (!/^[0-9a-f]{64}$/.test(expected)) {
        throw refusal(where, "sha256", quoted(expected), "64 lower-case hexadecimal digits");
    }
    const offset = findText(bytes, expected);
    if (offset >= 0 && (await sha256WithZeroedDigits(bytes, offset)) === expected) return;
    throw new RequestError(`${where}: its sha256 does not match its contents; the file is damaged`);
}

function parseMessages(text: string | undefined, where: string): SessionMessages | undefined {
    if (text === undefined) return undefined;
    const root = parseJson(text, `${where} (messages)`, (message) => new RequestError(message));
    return root
        .list()
        .map((message) => Object.fromEntries([...message.fields()].map(([key, value]) => [key, value.text()])));
}

function checkOwner<DType extends keyof CacheArrays>(
    file: Safetensors,
    owner: SessionOwner<DType>,
    where: string,
): void {
    const tables = file.metadata.get("tables") ?? "";
    const root = parseJson(tables, `${where} (tables)`, (message) => new RequestError(message));
    root.expectFields(["experts"]);
    const id = root.get("experts").text();
    if (id !== owner.tableId) {
        throw refusal(where, "tables", `the table ${quoted(id)}`, `"${owner.tableId}"; use the session's own bundle`);
    }
    const graph = file.metadata.get("graph") ?? "";
    if (graph !== owner.graph) {
        throw refusal(where, "graph", quoted(graph), `"${owner.graph}"; the session belongs to another graph`);
    }
}

function parseIds(file: Safetensors, config: ModelConfig, where: string): number[] {
    const most = config.maxPositionEmbeddings + 1;
    const found = file.tensors.get(idsName);
    const length = found?.shape[0] ?? 0;
    if (found?.dtype !== "I32" || found.shape.length !== 1 || length < 1 || length > most) {
        throw refusal(where, idsName, shown(found), `I32 [1 to ${most}]`);
    }
    const ids = [...tensorNumbers(found.data, Int32Array)];
    const wrong = ids.find((id) => id < 0 || id >= config.vocabSize);
    if (wrong === undefined) return ids;
    throw refusal(where, idsName, String(wrong), `ids from 0 to ${config.vocabSize - 1}`);
}

function parseCache<DType extends keyof CacheArrays>(
    file: Safetensors,
    owner: SessionOwner<DType>,
    tokens: number,
    where: string,
): Pick<SavedSession<CacheArrays[DType]>, "length" | "layers"> {
    const { kvCaches, maxPositionEmbeddings } = owner.config;
    const count = 1 + 2 * kvCaches.length;
    if (file.tensors.size !== count) {
        throw new RequestError(`${where}: found ${file.tensors.size} tensors, expected ${count} for this model`);
    }
    const [firstName] = cacheNames("past_key_values", kvCaches[0]!);
    const length = file.tensors.get(firstName)?.shape[1] ?? 0;
    const most = Math.min(tokens, maxPositionEmbeddings);
    if (length > most) throw refusal(where, firstName, `${length} tokens`, `at most ${most}`);
    const layers = kvCaches.map((cache) => {
        const shape = [cache.heads, length, cache.headDim];
        const numbers = (name: string): CacheArrays[DType] =>
            cacheNumbers(file.tensors.get(name), owner.kvDtype, shape, `${where}: ${name}`);
        const [key, value] = cacheNames("past_key_values", cache);
        return { key: numbers(key), value: numbers(value) };
    });
    return { length, layers };
}

/** Return the numbers of a tensor of the KV cache, which must be finite. */
function cacheNumbers<DType extends keyof CacheArrays>(
    tensor: Tensor | undefined,
    kvDtype: DType,
    shape: readonly number[],
    where: string,
): CacheArrays[DType] {
    const { dtype, numbers, isFinite } = storages[kvDtype];
    if (tensor?.dtype !== dtype || tensor.shape.join() !== shape.join()) {
        throw new RequestError(
            `${where}: found ${shown(tensor)}, expected ${shown({ dtype, shape })}; is the session of another graph?`,
        );
    }
    if (!isFinite(tensor.data)) throw new RequestError(`${where}: found NaN or infinity, expected finite numbers`);
    return numbers(tensor.data) as CacheArrays[DType];
}

/** Return whether no pattern has all bits of the exponent, as those of NaN and infinity have. */
function lacksExponent(patterns: Uint32Array | Uint16Array, exponent: number): boolean {
    for (let i = 0; i < patterns.length; i++) {
        if ((patterns[i]! & exponent) === exponent) return false;
    }
    return true;
}

function shown(tensor: Pick<Tensor, "dtype" | "shape"> | undefined): string {
    return tensor === undefined ? "no tensor" : `${tensor.dtype} [${tensor.shape.join(", ")}]`;
}
