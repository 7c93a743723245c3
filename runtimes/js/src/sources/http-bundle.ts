/** A source over the files of a web server: it downloads only the records that are used, and keeps what it downloads. */

import { BundleError, RequestError } from "../errors.js";
import { optionsOf } from "../runtime/checks.js";
import type {
    BytesListener,
    Description,
    ReadOptions,
    RecordReader,
    Source,
    SourceStats,
    TableLocation,
    WholeFile,
} from "../source.js";
import { openOpfs, type Opfs, errorText, type OpfsFolder } from "./http/opfs.js";
import { OpfsRecordCache } from "./http/opfs-records.js";
import { MemoryRecordCache, type RecordCache } from "./http/record-cache.js";
import { HttpRecordReader } from "./http/record-reader.js";
import { type Counters, type Fetch, Requests } from "./http/requests.js";
import { WholeFiles } from "./http/whole-files.js";

export interface HttpBundleOptions {
    /**
     * Where to keep what is downloaded: "opfs", the origin private file system of browsers, which only workers can use;
     * or "memory". Default "opfs"; where that is impossible, it is "memory", and `stats.cacheReason` says why.
     */
    readonly cache?: "opfs" | "memory" | undefined;
    /** Download the records of this number of lowest ids in the background; default 0. */
    readonly prefetch?: number | undefined;
    /** Bytes of records to keep; default 256 MiB. */
    readonly cacheBytes?: number | undefined;
    /** Requests for records that run at once; default 16. */
    readonly concurrency?: number | undefined;
    /** Headers of all requests. */
    readonly headers?: Readonly<Record<string, string>> | undefined;
    /** Sends the requests, default: the platform's `fetch`. With this option the source works only in its own thread. */
    readonly fetch?: Fetch | undefined;
}

/**
 * Return a source over the bundle in a folder of a web server, which must support range requests.
 *
 * @throws RequestError The address is not one of HTTP, or an option is impossible.
 */
export function httpBundle(url: string, options: HttpBundleOptions = {}): Source {
    return new HttpSource(parseAddress(url), checkOptions(options));
}

const pageLocation = (globalThis as { readonly location?: { readonly href: string; readonly origin: string } })
    .location;

function parseAddress(url: string): URL {
    let base: URL;
    try {
        base = new URL(url, pageLocation?.href);
    } catch (error) {
        throw new RequestError(`url: ${JSON.stringify(url)} is no address, expected one such as https://host/bundle/`, {
            cause: error,
        });
    }
    if (base.protocol !== "http:" && base.protocol !== "https:") {
        throw new RequestError(`url: ${JSON.stringify(url)} begins with ${base.protocol}, expected http: or https:`);
    }
    base.hash = "";
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    return base;
}

type CheckedOptions = Required<{ [K in keyof Omit<HttpBundleOptions, "fetch">]: NonNullable<HttpBundleOptions[K]> }> & {
    readonly fetch: Fetch | undefined;
};

function checkOptions(options: HttpBundleOptions): CheckedOptions {
    const {
        cache = "opfs",
        prefetch = 0,
        cacheBytes = 256 << 20,
        concurrency = 16,
        headers = {},
        fetch,
    } = optionsOf(options);
    if (!["opfs", "memory"].includes(cache)) {
        throw new RequestError(`cache: found ${JSON.stringify(cache)}, expected "opfs" or "memory"`);
    }
    for (const [name, value, lowest] of [
        ["prefetch", prefetch, 0],
        ["cacheBytes", cacheBytes, 0],
        ["concurrency", concurrency, 1],
    ] as const) {
        if (Number.isSafeInteger(value) && value >= lowest) continue;
        throw new RequestError(`${name}: found ${value}, expected an integer of at least ${lowest}`);
    }
    try {
        new Headers(headers);
    } catch (error) {
        throw new RequestError(`headers: cannot be sent (${errorText(error)})`, { cause: error });
    }
    return { cache, prefetch, cacheBytes, concurrency, headers, fetch };
}

interface Opened {
    readonly files: WholeFiles;
    readonly folder: OpfsFolder | undefined;
}

class HttpSource implements Source {
    readonly checksShards = false;
    readonly description: Description | undefined;
    private readonly counters: Counters = { networkBytes: 0, networkRequests: 0, networkRecords: 0, cachedRecords: 0 };
    private readonly readers = new Set<HttpRecordReader>();
    private requests: Requests;
    private opened: Promise<Opened> | undefined;
    private cache: SourceStats["cache"] = "none";
    private cacheReason = "";

    constructor(
        private readonly base: URL,
        private readonly options: CheckedOptions,
    ) {
        this.requests = this.newRequests();
        const { fetch, ...cloneable } = options;
        if (fetch === undefined) this.description = { kind: "http-bundle", url: base.href, ...cloneable };
    }

    get where(): string {
        return this.base.href;
    }

    get stats(): SourceStats {
        return { ...this.counters, cache: this.cache, cacheReason: this.cacheReason };
    }

    async manifest(limit: number, options: ReadOptions = {}): Promise<Uint8Array> {
        return (await this.open(options.signal)).files.manifest(limit, options.signal);
    }

    async checkSizes(): Promise<void> {
        // The size of a file is checked when it is read.
    }

    async load(
        file: WholeFile,
        options: ReadOptions & {
            readonly onBytes?: BytesListener | undefined;
            readonly refresh?: boolean | undefined;
        } = {},
    ): Promise<Uint8Array> {
        return (await this.open(options.signal)).files.load(file, options);
    }

    async readRange(
        file: { readonly name: string; readonly size: number },
        offset: number,
        length: number,
        options: ReadOptions = {},
    ): Promise<Uint8Array> {
        if (length === 0) return new Uint8Array(0);
        for (let attempt = 0; attempt < 2; attempt++) {
            const { bytes, changed } = await this.requests.range(file, offset, length, options);
            if (!changed) return bytes;
        }
        throw new BundleError(
            `${this.requests.address(file.name)}: its ETag or Last-Modified changed since it was first read: the file ` +
                "on the server is another version than the manifest; open the bundle again",
        );
    }

    async openTable(table: TableLocation): Promise<RecordReader> {
        const { files, folder } = await this.open(undefined);
        await files.keepManifest();
        const cache = await this.openCache(table, folder);
        const onClose = (): void => {
            this.readers.delete(reader);
        };
        const reader: HttpRecordReader = new HttpRecordReader(this.requests, table, cache, this.counters, onClose);
        this.readers.add(reader);
        reader.prefetch(this.options.prefetch);
        return reader;
    }

    async close(): Promise<void> {
        await Promise.all([...this.readers].map((reader) => reader.close()));
        const opened = await this.opened;
        await opened?.folder?.release();
        this.opened = undefined;
        this.requests = this.newRequests();
    }

    private newRequests(): Requests {
        const { headers, concurrency, fetch } = this.options;
        const send: Fetch = fetch ?? ((url, init) => globalThis.fetch(url, init));
        return new Requests({ base: this.base, headers, concurrency, fetch: send, counters: this.counters });
    }

    private async open(signal: AbortSignal | undefined): Promise<Opened> {
        signal?.throwIfAborted();
        this.opened ??= this.openStorage();
        const opened = await this.opened;
        signal?.throwIfAborted();
        return opened;
    }

    private async openStorage(): Promise<Opened> {
        const { folder, reason }: Opfs = this.options.cache === "opfs" ? await openOpfs(this.base) : { reason: "" };
        this.cache = folder?.writable === true ? "opfs" : "memory";
        this.cacheReason = reason;
        const sameOrigin = pageLocation === undefined || pageLocation.origin === this.base.origin;
        return { files: new WholeFiles(this.requests, folder, sameOrigin, this.onFailure), folder };
    }

    private async openCache(table: TableLocation, folder: OpfsFolder | undefined): Promise<RecordCache> {
        const capacity = Math.floor(this.options.cacheBytes / table.stride);
        if (folder?.writable === true) {
            try {
                return await openRecords(folder, table, capacity, this.onFailure);
            } catch (error) {
                this.cache = "memory";
                this.onFailure(`records are not kept (${errorText(error)})`);
            }
        }
        return new MemoryRecordCache(capacity);
    }

    private readonly onFailure = (reason: string): void => {
        if (this.cacheReason === "") this.cacheReason = reason;
    };
}

async function openRecords(
    folder: OpfsFolder,
    table: TableLocation,
    capacity: number,
    onFailure: (reason: string) => void,
): Promise<RecordCache> {
    const data = await folder.open(`table-${table.id}.slots`);
    try {
        const index = await folder.open(`table-${table.id}.index`);
        try {
            return new OpfsRecordCache(data, index, table.stride, capacity, onFailure);
        } catch (error) {
            index.close();
            throw error;
        }
    } catch (error) {
        data.close();
        throw error;
    }
}
