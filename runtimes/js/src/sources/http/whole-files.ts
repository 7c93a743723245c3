/** The manifest, and the files that are downloaded whole and kept in OPFS. */

import { BundleError } from "../../errors.js";
import type { BytesListener, WholeFile } from "../../source.js";
import { allocate } from "../folder.js";
import type { OpfsFolder } from "./opfs.js";
import { PartialFile, readComplete } from "./partial-file.js";
import { type Answer, Interruption, otherSize, type Requests } from "./requests.js";

export interface LoadOptions {
    readonly signal?: AbortSignal | undefined;
    readonly onBytes?: BytesListener | undefined;
    readonly refresh?: boolean | undefined;
}

/** What has arrived of a file. */
interface Download {
    readonly file: WholeFile;
    readonly options: LoadOptions;
    readonly content: GrowingBytes;
    readonly stored: PartialFile | undefined;
    version: string;
}

export class WholeFiles {
    /** The manifest of the server, until it is stored. */
    private received: Uint8Array | undefined;

    /** @param sameOrigin Whether a request may have the header If-Range without asking the server first (CORS). */
    constructor(
        private readonly requests: Requests,
        private readonly folder: OpfsFolder | undefined,
        private readonly sameOrigin: boolean,
        private readonly onFailure: (reason: string) => void,
    ) {}

    /** Return the server's manifest, or the one of the last visit if the server cannot be reached. */
    async manifest(limit: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
        const name = "manifest.json";
        try {
            this.received = await this.requests.attempts(name, signal, () =>
                this.requests.get(name, { signal, cache: "no-cache" }, async (answer) => {
                    const content = new GrowingBytes(limit, this.requests.address(name), "at most ");
                    await content.fill(answer);
                    return content.bytes();
                }),
            );
            return this.received;
        } catch (error) {
            if (!(error instanceof BundleError && error.cause instanceof Interruption)) throw error;
            const known = await this.folder?.read(name);
            if (known === undefined || known.length > limit) throw error;
            return known;
        }
    }

    /** Keep the manifest, which the driver has checked by now, and delete the files and tables that it does not name. */
    async keepManifest(): Promise<void> {
        if (this.folder?.writable !== true || this.received === undefined) return;
        try {
            const text = new TextDecoder().decode(this.received);
            await this.folder.write("manifest.json", this.received);
            for (const name of await this.folder.names()) {
                const [, id] = /^(?:file|table)-([0-9a-f]+)/.exec(name) ?? [];
                if (id !== undefined && !text.includes(id)) await this.folder.remove(name);
            }
        } catch (error) {
            this.onFailure(`the manifest is not kept (${String(error)})`);
        }
    }

    /** Return a file from OPFS or from the server. What a broken download left is not downloaded again. */
    async load(file: WholeFile, options: LoadOptions): Promise<Uint8Array> {
        const refresh = options.refresh === true;
        const { signal, onBytes } = options;
        signal?.throwIfAborted();
        const known = refresh || !this.folder ? undefined : await readComplete(this.folder, file.sha256, file.size);
        signal?.throwIfAborted();
        if (known !== undefined) {
            onBytes?.(known.length);
            return known;
        }
        const stored = this.folder?.writable
            ? await PartialFile.open(this.folder, file.sha256, refresh, this.onFailure)
            : undefined;
        try {
            const content = new GrowingBytes(file.size, this.requests.address(file.name), "");
            if (stored !== undefined) content.append(stored.stored(file.size));
            const download = { file, options, content, stored, version: stored?.version ?? "" };
            const isComplete = content.length === file.size && file.size > 0;
            if (!isComplete) await this.requests.attempts(file.name, signal, () => this.continue(download));
            stored?.complete();
            return content.bytes();
        } finally {
            stored?.close();
        }
    }

    /** Send one request for the missing part of a file. */
    private async continue(download: Download): Promise<void> {
        const { file, content, options } = download;
        const range = content.length === 0 ? undefined : `${content.length}-`;
        const isStrong = download.version.startsWith('"');
        const ifRange = range !== undefined && isStrong && this.sameOrigin ? download.version : undefined;
        // What this source keeps should not be in the browser's cache, too.
        const cache = this.folder?.writable ? "no-store" : options.refresh === true ? "reload" : "default";
        await this.requests.get(file.name, { signal: options.signal, range, ifRange, cache }, async (answer) => {
            this.begin(download, answer);
            await content.fill(answer, (part) => {
                download.stored?.write(part, content.length - part.length);
                options.onBytes?.(content.length);
            });
        });
        if (content.length < file.size) {
            throw new Interruption(`the answer ended after ${content.length} of ${file.size} bytes`);
        }
    }

    /** Begin anew unless the answer continues the same version of the file. */
    private begin(download: Download, answer: Answer): void {
        const { content, file, stored } = download;
        const changed = download.version !== "" && answer.version !== download.version;
        const size = answer.range?.total ?? (answer.status === 200 ? answer.length : undefined);
        if (size !== undefined && size !== file.size) {
            answer.cancel();
            throw otherSize(this.requests.address(file.name), size, file.size);
        }
        const isNext = answer.range === undefined || answer.range.first === content.length;
        if (answer.status === 206 && !changed && isNext) return;
        content.clear();
        download.version = answer.version;
        stored?.restart(answer.version);
        if (answer.status === 200) return;
        answer.cancel();
        throw new Interruption("the file changed during the download");
    }
}

/** The bytes of a file, at most `limit`. An untrusted size reserves no memory before bytes arrive. */
class GrowingBytes {
    length = 0;
    private buffer = new Uint8Array(0);

    constructor(
        private readonly limit: number,
        private readonly where: string,
        private readonly limitWords: string,
    ) {}

    async fill(answer: Answer, onPart?: (part: Uint8Array) => void): Promise<void> {
        if (answer.length !== undefined) this.reserve(this.length + answer.length);
        await answer.body((part) => {
            this.append(part);
            onPart?.(part);
        });
    }

    append(part: Uint8Array): void {
        const length = this.length + part.length;
        if (length > this.limit) {
            throw new BundleError(
                `${this.where}: the server sends more than ${this.limit} bytes, expected ${this.limitWords}` +
                    `${this.limit}: the file is another version than the manifest, or no file of a bundle`,
            );
        }
        if (length > this.buffer.length) this.reserve(Math.max(length, 2 * this.buffer.length));
        this.buffer.set(part, this.length);
        this.length = length;
    }

    bytes(): Uint8Array {
        return this.buffer.subarray(0, this.length);
    }

    clear(): void {
        this.length = 0;
    }

    private reserve(size: number): void {
        const capacity = Math.min(size, this.limit);
        if (capacity <= this.buffer.length) return;
        const larger = allocate(capacity, this.where);
        larger.set(this.bytes());
        this.buffer = larger;
    }
}
