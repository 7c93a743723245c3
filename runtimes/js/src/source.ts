/**
 * The interface of a source: where the files of a bundle come from. The core reads a bundle only through it, so another
 * platform needs only another source.
 */

/** Options of a read. `signal` ends it with the signal's reason. */
export interface ReadOptions {
    readonly signal?: AbortSignal | undefined;
}

/** A file that is read whole, as the manifest describes it. */
export interface WholeFile {
    readonly name: string;
    /** Bytes. */
    readonly size: number;
    /** 64 lower-case hexadecimal digits. A source may keep a file under this name. It does not have to compare hashes. */
    readonly sha256: string;
}

/** Bytes of a whole file that have arrived so far. */
export type BytesListener = (loaded: number) => void;

/** A file on this device, whose name in the folder is its name in the bundle. */
export interface LocalFile {
    /** An absolute path. */
    readonly folder: string;
    /** The hash of the content. */
    readonly sha256: string;
}

/** A shard of a table: rows `firstRow` to `firstRow + count - 1`, one after the other from `dataOffset` on. */
export interface ShardLocation {
    readonly file: string;
    readonly firstRow: number;
    readonly count: number;
    /** Bytes from the start of the file to the shard's first record. */
    readonly dataOffset: number;
    /** Bytes of the whole file. */
    readonly size: number;
}

/** What a source knows of a table. */
export interface TableLocation {
    /** 16 hexadecimal digits: the same for all copies of this table, another one for every other table. */
    readonly id: string;
    readonly rows: number;
    /** Bytes of a record, and from the start of a record to the start of the next. */
    readonly stride: number;
    readonly shards: readonly ShardLocation[];
    /** Whether the checksum of a record is right for this table and row. */
    isSound(row: number, record: Uint8Array): boolean;
}

/** Reads records of one table. */
export interface RecordReader {
    /**
     * Return the records of some rows, in the order of `rows`. Each array has `stride` bytes and is not changed later.
     * The reader has checked each record with `TableLocation.isSound`.
     *
     * `rows` has no duplicates.
     *
     * @throws BundleError A record is damaged, or cannot be read.
     */
    read(rows: readonly number[], options?: ReadOptions): Promise<Uint8Array[]>;
    close(): Promise<void>;
}

/** Numbers that a source counts. A source without a network or a cache leaves these numbers at 0. */
export interface SourceStats {
    /** Bytes that came over the network: files and records, with the headers of multi-part answers but no HTTP headers. */
    readonly networkBytes: number;
    /** Requests that were sent for records. */
    readonly networkRequests: number;
    /** Records that came over the network. */
    readonly networkRecords: number;
    /** Records that came from the source's cache. */
    readonly cachedRecords: number;
    /** Where the source keeps what it downloads: "opfs", "memory" or "none". */
    readonly cache: "opfs" | "memory" | "none";
    /** Why `cache` is not what the caller asked for; "" if it is. */
    readonly cacheReason: string;
}

/** Options that can be sent to a worker (structured clone), which makes the same source or backend from them. */
export interface Description {
    readonly kind: string;
    readonly [option: string]: unknown;
}

export interface Source {
    /** How a worker makes the same source; undefined: the source works only in the thread that made it. */
    readonly description?: Description | undefined;
    /** The path or address of the bundle, for messages. */
    readonly where: string;
    /** What the source has done so far. */
    readonly stats: SourceStats;
    /** Another CRC-32 (of zlib and PNG) that is faster than the core's: continue `value` (at first 0) with `bytes`. */
    readonly crc32?: ((bytes: Uint8Array, value: number) => number) | undefined;

    /** Return the bytes of manifest.json. At most `limit` bytes. */
    manifest(limit: number, options?: ReadOptions): Promise<Uint8Array>;
    /**
     * Check that each file is a regular file of exactly its size (check 7 of docs/bundle-format.md). A source over HTTP
     * checks the size of a file when it reads the file.
     *
     * @throws BundleError A file is missing or has another size.
     */
    checkSizes(
        files: readonly { readonly name: string; readonly size: number }[],
        options?: ReadOptions,
    ): Promise<void>;
    /**
     * Return the content of a file. The caller compares the hash. `refresh` means that the source must not take the file
     * from its cache, because what the cache returned had another hash.
     */
    load(
        file: WholeFile,
        options?: ReadOptions & {
            readonly onBytes?: BytesListener | undefined;
            readonly refresh?: boolean | undefined;
        },
    ): Promise<Uint8Array>;
    /**
     * Hash a file that a backend can read itself, without keeping its content. Return undefined if there is no such file
     * on this device; the driver then calls `load`.
     */
    localFile?(
        file: WholeFile,
        options?: ReadOptions & { readonly onBytes?: BytesListener | undefined },
    ): Promise<LocalFile | undefined>;
    /** Return `length` bytes of a file from `offset` on. */
    readRange(
        file: { readonly name: string; readonly size: number },
        offset: number,
        length: number,
        options?: ReadOptions,
    ): Promise<Uint8Array>;
    /** Whether `readRange` is cheap, so that the driver checks the headers of shards (check 9). */
    readonly checksShards: boolean;
    /** Return a reader of a table's records. */
    openTable(table: TableLocation): Promise<RecordReader>;
    /** Release handles. The source can still be opened again. */
    close(): Promise<void>;
}
