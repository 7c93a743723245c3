/** A source over files with positioned reads. A platform gives the files; this module reads bundles from them. */

import { BundleError, MemoryError } from "../errors.js";
import type {
    BytesListener,
    Description,
    LocalFile,
    ReadOptions,
    RecordReader,
    Source,
    SourceStats,
    TableLocation,
    WholeFile,
} from "../source.js";
import { damagedRecord, planRuns, recordOf, type Run, runOffset } from "./record-runs.js";

/** An open file. */
export interface FolderFile {
    /** Bytes. */
    readonly size: number;
    /** Return `length` bytes from `offset` on, or fewer at the end of the file, in an array that is not used again. */
    read(offset: number, length: number): Promise<Uint8Array>;
    close(): Promise<void>;
}

export interface Folder {
    readonly description: Description;
    readonly where: string;
    readonly crc32?: Source["crc32"];
    /** Open a file by a plain name. @throws BundleError There is no such regular file, or it cannot be opened. */
    open(name: string): Promise<FolderFile>;
    /** Return the size of a file in bytes. @throws BundleError There is no such regular file. */
    size(name: string): Promise<number>;
    /** See `Source.localFile`. */
    readonly localFile?: NonNullable<Source["localFile"]>;
}

const longestRun = 1 << 20; // bytes; longer runs are divided
const longestRead = 8 << 20; // bytes of a whole file between two looks at the signal

const noNetwork: SourceStats = {
    networkBytes: 0,
    networkRequests: 0,
    networkRecords: 0,
    cachedRecords: 0,
    cache: "none",
    cacheReason: "",
};

/** Check that a name cannot leave the folder (check 3 of docs/bundle-format.md). @throws BundleError It can. */
export function checkPlainName(name: string, where: string): void {
    if (name !== "" && name !== "." && name !== ".." && !/[/\\\0]/.test(name)) return;
    throw new BundleError(
        `${where}: ${JSON.stringify(name)} is no name of a file in the bundle, expected a plain name`,
    );
}

/** Return zeros. @throws MemoryError There is no memory for them. */
export function allocate(size: number, where: string): Uint8Array<ArrayBuffer> {
    try {
        return new Uint8Array(size);
    } catch (error) {
        throw new MemoryError(`${where}: ${size} bytes do not fit into the memory`, { cause: error });
    }
}

/** Return the error of a file that has not the size of the manifest. */
export function wrongSize(where: string, found: number, expected: number): BundleError {
    return new BundleError(
        `${where}: has ${found} bytes, expected ${expected}: the file is incomplete, or of another export; copy or ` +
            "export the bundle again",
    );
}

export class FolderSource implements Source {
    readonly checksShards = true;
    readonly stats = noNetwork;
    private readonly readers = new Set<FolderReader>();

    constructor(private readonly folder: Folder) {}

    get description(): Description {
        return this.folder.description;
    }

    get where(): string {
        return this.folder.where;
    }

    get crc32(): Source["crc32"] {
        return this.folder.crc32;
    }

    async manifest(limit: number, options: ReadOptions = {}): Promise<Uint8Array> {
        return this.withFile("manifest.json", options.signal, async (file, where) => {
            if (file.size > limit) {
                throw new BundleError(`${where}: has ${file.size} bytes, expected at most ${limit}; is it a manifest?`);
            }
            return readExactly(file, 0, file.size, where);
        });
    }

    async checkSizes(
        files: readonly { readonly name: string; readonly size: number }[],
        options: ReadOptions = {},
    ): Promise<void> {
        for (const { name, size } of files) {
            options.signal?.throwIfAborted();
            checkPlainName(name, this.where);
            const found = await this.folder.size(name);
            if (found !== size) throw wrongSize(this.path(name), found, size);
        }
    }

    async load(
        wanted: WholeFile,
        options: ReadOptions & { readonly onBytes?: BytesListener | undefined } = {},
    ): Promise<Uint8Array> {
        return this.withFile(wanted.name, options.signal, async (file, where) => {
            if (file.size !== wanted.size) throw wrongSize(where, file.size, wanted.size);
            const content = allocate(file.size, where);
            for (let offset = 0; offset < content.length;) {
                const part = await readExactly(file, offset, Math.min(longestRead, content.length - offset), where);
                options.signal?.throwIfAborted();
                content.set(part, offset);
                offset += part.length;
                options.onBytes?.(offset);
            }
            return content;
        });
    }

    async localFile(
        wanted: WholeFile,
        options: ReadOptions & { readonly onBytes?: BytesListener | undefined } = {},
    ): Promise<LocalFile | undefined> {
        return this.folder.localFile?.(wanted, options);
    }

    async readRange(
        wanted: { readonly name: string; readonly size: number },
        offset: number,
        length: number,
        options: ReadOptions = {},
    ): Promise<Uint8Array> {
        return this.withFile(wanted.name, options.signal, (file, where) => readExactly(file, offset, length, where));
    }

    async openTable(table: TableLocation): Promise<RecordReader> {
        const files = new Map<string, FolderFile>();
        const reader = new FolderReader(this.where, table, files, () => this.readers.delete(reader));
        try {
            for (const shard of table.shards) {
                checkPlainName(shard.file, this.where);
                if (!files.has(shard.file)) files.set(shard.file, await this.folder.open(shard.file));
                const { size } = files.get(shard.file)!;
                if (size !== shard.size) throw wrongSize(this.path(shard.file), size, shard.size);
            }
        } catch (error) {
            await reader.close();
            throw error;
        }
        this.readers.add(reader);
        return reader;
    }

    async close(): Promise<void> {
        await Promise.all([...this.readers].map((reader) => reader.close()));
    }

    private async withFile<T>(
        name: string,
        signal: AbortSignal | undefined,
        use: (file: FolderFile, where: string) => Promise<T>,
    ): Promise<T> {
        signal?.throwIfAborted();
        checkPlainName(name, this.where);
        const file = await this.folder.open(name);
        try {
            signal?.throwIfAborted();
            const result = await use(file, this.path(name));
            signal?.throwIfAborted();
            return result;
        } finally {
            await file.close();
        }
    }

    private path(name: string): string {
        return `${this.where}/${name}`;
    }
}

class FolderReader implements RecordReader {
    constructor(
        private readonly where: string,
        private readonly table: TableLocation,
        private readonly files: Map<string, FolderFile>,
        private readonly onClose: () => void,
    ) {}

    async read(rows: readonly number[], options: ReadOptions = {}): Promise<Uint8Array[]> {
        options.signal?.throwIfAborted();
        const records = new Array<Uint8Array>(rows.length);
        const runs = planRuns(this.table, rows, { longest: longestRun, gap: 0 });
        await Promise.all(runs.map((run) => this.readRun(run, rows, records)));
        options.signal?.throwIfAborted();
        return records;
    }

    async close(): Promise<void> {
        this.onClose();
        const files = [...this.files.values()];
        this.files.clear();
        await Promise.all(files.map((file) => file.close()));
    }

    private async readRun(run: Run, rows: readonly number[], records: Uint8Array[]): Promise<void> {
        const where = `${this.where}/${run.shard.file}`;
        const file = this.files.get(run.shard.file);
        if (file === undefined) throw new BundleError(`${where}: was closed; open the bundle again`);
        const bytes = await readExactly(file, runOffset(this.table, run), run.count * this.table.stride, where);
        for (const place of run.places) {
            const row = rows[place]!;
            const record = recordOf(this.table, run, bytes, row);
            if (!this.table.isSound(row, record)) {
                throw damagedRecord(where, run.shard, row, "copy or export the bundle again");
            }
            records[place] = record;
        }
    }
}

async function readExactly(file: FolderFile, offset: number, length: number, where: string): Promise<Uint8Array> {
    if (offset < 0 || length < 0 || offset + length > file.size) {
        throw new BundleError(
            `${where}: has ${file.size} bytes, expected ${length} bytes from byte ${offset} on; is the file truncated?`,
        );
    }
    const bytes = await file.read(offset, length);
    if (bytes.length === length) return bytes;
    throw new BundleError(
        `${where}: ends at byte ${offset + bytes.length}, where more data was expected; was the file truncated while ` +
            "it was open?",
    );
}
