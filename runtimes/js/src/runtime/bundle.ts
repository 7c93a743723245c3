/** An open bundle: the choice of the graph, and the checks of docs/bundle-format.md, "What a reader checks". */

import { BundleError, MemoryError } from "../errors.js";
import { crc32 } from "../format/crc32.js";
import { checkInterface } from "../format/graph-interface.js";
import type { Graph, GraphFile, Manifest, ModelConfig } from "../format/manifest.js";
import { parseManifest } from "../format/read-manifest.js";
import { checkRecord, isSoundRecord } from "../format/record.js";
import { sha256 } from "../format/sha256.js";
import { checkShardHeader } from "../format/shard.js";
import type { BytesListener, ReadOptions, Source, TableLocation } from "../source.js";

/** The most bytes of a manifest, as in the other drivers. The interface of 65,536 layers needs about 100 MB. */
const MOST_MANIFEST_BYTES = 2 ** 28;
/** The most bytes of a shard's header, as in the library safetensors. */
const MOST_HEADER_BYTES = 100_000_000;

/** Options of `Bundle.readChecked`. */
export interface ReadCheckedOptions extends ReadOptions {
    readonly onBytes?: BytesListener | undefined;
}

/** A bundle whose manifest was checked. */
export class Bundle {
    /** The only ONNX file of `graph`. */
    readonly graphFile: GraphFile;
    /** The model's configuration, with the `context_length` and the `expert_window` of the graph. */
    readonly config: ModelConfig;

    constructor(
        readonly source: Source,
        readonly manifest: Manifest,
        /** The graph of profile "cpu". */
        readonly graph: Graph,
    ) {
        this.graphFile = graph.files[0]!;
        const { contextLength, expertWindow } = graph;
        this.config = { ...manifest.model, maxPositionEmbeddings: contextLength, expertWindow };
    }

    has(name: string): boolean {
        return this.manifest.files.has(name);
    }

    /** Return the path or address of a file, for messages. */
    path(name: string): string {
        return `${this.source.where}/${name}`;
    }

    /** Return the number of bytes of a file of the manifest. */
    size(name: string): number {
        return this.#info(name).size;
    }

    /**
     * Return the content of a file after comparing its hash (checks 12 and 16).
     *
     * @throws BundleError The bundle has no such file, or the file is damaged or cannot be read.
     * @throws MemoryError The file does not fit into memory.
     */
    async readChecked(name: string, options: ReadCheckedOptions = {}): Promise<Uint8Array> {
        const { size, sha256: expected } = this.#info(name);
        const load = async (refresh: boolean): Promise<{ content: Uint8Array; found: string }> => {
            const content = await loadFile(this.source, { name, size, sha256: expected }, { ...options, refresh });
            options.signal?.throwIfAborted();
            return { content, found: await sha256(content) };
        };
        let { content, found } = await load(false);
        if (found !== expected && this.source.stats.cache !== "none") ({ content, found } = await load(true));
        if (found === expected) return content;
        throw this.#damaged(name, found, expected);
    }

    /**
     * Compare the hash of a file that a backend will read (check 12). Return its folder, or undefined if only
     * `readChecked` can read it.
     *
     * @throws BundleError The bundle has no such file, or the file is damaged or cannot be read.
     */
    async checkedFolder(name: string, options: ReadCheckedOptions = {}): Promise<string | undefined> {
        const { size, sha256: expected } = this.#info(name);
        const file = await this.source.localFile?.({ name, size, sha256: expected }, options);
        if (file !== undefined && file.sha256 !== expected) throw this.#damaged(name, file.sha256, expected);
        return file?.folder;
    }

    /** Return what the source knows of the table of experts. */
    table(): TableLocation {
        const { id, rows, stride, shards } = this.manifest.experts;
        const checksum = this.source.crc32 ?? crc32;
        return {
            id,
            rows,
            stride,
            shards: shards.map((shard) => ({ ...shard, size: this.size(shard.file) })),
            isSound: (row, record) => isSoundRecord(checksum, id, row, record),
        };
    }

    #damaged(name: string, found: string, expected: string): BundleError {
        return new BundleError(
            `${this.path(name)}: has sha256 ${found.slice(0, 12)}..., the manifest says ${expected.slice(0, 12)}...; ` +
                "the file is damaged, so copy or export the bundle again",
        );
    }

    #info(name: string): { readonly size: number; readonly sha256: string } {
        const info = this.manifest.files.get(name);
        if (info === undefined) throw new BundleError(`${this.path(name)}: is not part of the bundle`);
        return info;
    }
}

/**
 * Open a bundle and make the checks 1 to 10.
 *
 * @throws BundleError A check fails, or the bundle has no graph of profile "cpu".
 */
export async function openBundle(source: Source, options: ReadOptions = {}): Promise<Bundle> {
    const { signal } = options;
    const where = `${source.where}/manifest.json`;
    const manifest = await parseManifest(await source.manifest(MOST_MANIFEST_BYTES, options), where);
    signal?.throwIfAborted();
    const bundle = new Bundle(source, manifest, chooseGraph(source, manifest));
    const { config, graph, graphFile } = bundle;
    checkRecord(config, manifest.experts, where);
    checkInterface(config, graph, graphFile, bundle.path(graphFile.file));
    const files = [...manifest.files].map(([name, { size }]) => ({ name, size }));
    await source.checkSizes(files, options);
    if (source.checksShards) await checkShards(bundle, options);
    return bundle;
}

async function loadFile(source: Source, ...[file, options]: Parameters<Source["load"]>): Promise<Uint8Array> {
    try {
        return await source.load(file, options);
    } catch (error) {
        // JavaScript reports arrays that do not fit into memory with this class.
        if (!(error instanceof RangeError)) throw error;
        const needed = Math.ceil(file.size / 2 ** 20);
        throw new MemoryError(
            `${source.where}/${file.name}: needs ${needed} MiB of memory, more than there is; close other programs, ` +
                "or export the bundle with a smaller dtype",
            { cause: error },
        );
    }
}

function chooseGraph(source: Source, manifest: Manifest): Graph {
    const graph = manifest.graphs.find(({ profile }) => profile === "cpu");
    if (graph === undefined) {
        const found = manifest.graphs.map(({ profile }) => `"${profile}"`).join(" and ");
        throw new BundleError(
            `${source.where}: has graphs of profile ${found}, expected "cpu"; add one with: molkv-export export ` +
                `CHECKPOINT ${source.where} --add-profile cpu`,
        );
    }
    const { file } = graph.files[0]!;
    if (file.endsWith(".ort")) {
        throw new BundleError(
            `${source.where}/${file}: is a graph in ORT format, expected an ONNX file; use the bundle as it was exported`,
        );
    }
    return graph;
}

// Check 9.
async function checkShards(bundle: Bundle, options: ReadOptions): Promise<void> {
    const table = bundle.manifest.experts;
    for (const shard of table.shards) {
        const where = bundle.path(shard.file);
        if (shard.dataOffset > MOST_HEADER_BYTES) {
            throw new BundleError(
                `${where}: has a header of ${shard.dataOffset} bytes, expected at most ${MOST_HEADER_BYTES}`,
            );
        }
        const file = { name: shard.file, size: bundle.size(shard.file) };
        const header = await bundle.source.readRange(file, 0, shard.dataOffset, options);
        checkShardHeader(header, table, shard, where);
    }
}
