/** The reader of manifest.json (docs/bundle-format.md): its version, its hash, its files and defaults. */

import { parseJson, quoted, type JsonValue } from "./json.js";
import type { FileInfo, Generation, Graph, Manifest, SamplingDefaults } from "./manifest.js";
import { parseGraphs } from "./manifest-graphs.js";
import { namedFile, parseDigits, parseTables } from "./manifest-tables.js";
import { parseModel } from "./model-config.js";
import { findText, sha256WithZeroedDigits } from "./sha256.js";

const schemaVersion = 4;

/**
 * Parse and check a manifest: the checks 1 to 6 of "What a reader checks", without the profile that a user asks for.
 * `where` is the path of the file.
 *
 * @throws BundleError The manifest is damaged, or another version wrote it.
 */
export async function parseManifest(bytes: Uint8Array, where: string): Promise<Manifest> {
    const root = parseJson(bytes, where);
    checkVersion(root.get("schema_version"));
    const sha256 = await checkHash(bytes, root.get("sha256"));
    root.expectFields(["schema_version", "model", "graphs", "tables", "generation", "files", "provenance", "sha256"]);
    const files = parseFiles(root.get("files"));
    const model = parseModel(root.get("model"));
    checkProvenance(root.get("provenance"));
    return {
        model,
        graphs: parseListedGraphs(root.get("graphs"), model, files),
        experts: parseTables(root.get("tables"), model.vocabSize, files),
        generation: parseGeneration(root.get("generation"), model.vocabSize, files),
        files,
        sha256,
    };
}

function checkVersion(value: JsonValue): void {
    const version = value.integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
    if (version === schemaVersion) return;
    const advice =
        version > schemaVersion
            ? "A newer exporter made the bundle: update this driver"
            : "An older exporter made the bundle: export it again";
    throw value.error(String(version), `${schemaVersion}. ${advice}`);
}

/** Compare the hash of the manifest, which covers the file with zeros in the place of the hash. */
async function checkHash(bytes: Uint8Array, value: JsonValue): Promise<string> {
    const expected = parseDigits(value, 64);
    const offset = findText(bytes, expected);
    if (offset < 0) throw value.error("digits with escape sequences", "the digits themselves");
    const found = await sha256WithZeroedDigits(bytes, offset);
    if (found === expected) return expected;
    throw value.error(
        `${expected.slice(0, 12)}..., but the file has ${found.slice(0, 12)}...`,
        "the hash of the file; the file was changed after the export, so copy or export the bundle again",
    );
}

function parseFiles(files: JsonValue): Map<string, FileInfo> {
    const found = new Map<string, FileInfo>();
    for (const [name, file] of files.fields()) {
        if (["", ".", "..", "manifest.json"].includes(name) || /[/\\\u0000]/.test(name)) {
            throw files.error(`the name ${quoted(name)}`, "plain names of files inside the bundle");
        }
        file.expectFields(["size", "sha256"]);
        found.set(name, {
            size: file.get("size").integer(0, Number.MAX_SAFE_INTEGER),
            sha256: parseDigits(file.get("sha256"), 64),
        });
    }
    return found;
}

/** Parse the graphs, and check that `files` lists every file that they name. */
function parseListedGraphs(graphs: JsonValue, model: Manifest["model"], files: Manifest["files"]): Graph[] {
    const found = parseGraphs(graphs, model);
    for (const graph of graphs.fields().values()) {
        namedFile(graph.get("data"), files);
        namedFile(graph.get("golden"), files);
        for (const file of graph.get("files").list()) namedFile(file.get("file"), files);
    }
    return found;
}

function parseGeneration(generation: JsonValue, vocabSize: number, files: Manifest["files"]): Generation {
    generation.expectFields(["eos_token_ids", "sampling", "chat_template"]);
    const template = generation.get("chat_template");
    const chatTemplate = template.oneOf(["chat_template.jinja", "tokenizer_config.json", ""]);
    if (chatTemplate !== "") namedFile(template, files);
    return {
        eosTokenIds: generation
            .get("eos_token_ids")
            .list()
            .map((id) => id.integer(0, vocabSize - 1)),
        sampling: parseSampling(generation.get("sampling")),
        chatTemplate,
    };
}

/** Parse the defaults of sampling, and check their ranges (docs/bundle-format.md, "Sampling"). */
function parseSampling(sampling: JsonValue): SamplingDefaults {
    sampling.expectFields(["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]);
    const number = (name: string, isAllowed: (value: number) => boolean, range: string): number => {
        const value = sampling.get(name).number();
        if (!isAllowed(value)) throw sampling.get(name).error(String(value), range);
        return value;
    };
    return {
        temperature: number("temperature", (t) => t === 0 || (t >= 1e-6 && t <= 1e6), "0, or 1e-6 to 1e6"),
        topK: sampling.get("top_k").integer(0, 2 ** 31 - 1),
        topP: number("top_p", (p) => p > 0 && p <= 1, "more than 0, to 1"),
        minP: number("min_p", (p) => p >= 0 && p <= 1, "0 to 1"),
        repetitionPenalty: number("repetition_penalty", (r) => r >= 0.01 && r <= 100, "0.01 to 100"),
    };
}

function checkProvenance(provenance: JsonValue): void {
    provenance.expectFields(["command", "tools", "source"]);
    provenance.get("command").text();
    for (const name of ["tools", "source"]) {
        for (const value of provenance.get(name).fields().values()) value.text();
    }
}
