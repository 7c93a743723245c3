/** A source over a folder of this computer, in Node. */

import { createHash } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import { type FileHandle, open, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import * as zlib from "node:zlib";

import { BundleError, RequestError } from "../errors.js";
import { shown } from "../runtime/checks.js";
import type { LocalFile, Source, WholeFile } from "../source.js";
import { allocate, type Folder, type FolderFile, FolderSource } from "./folder.js";

// Opening a pipe waits for a writer without O_NONBLOCK, which has no effect on regular files. Windows does not have it.
const nonBlocking = (constants as { readonly O_NONBLOCK?: number }).O_NONBLOCK ?? 0;

const hashedAtOnce = 1 << 20; // bytes

// Node has it from 20.15 and 22.2 on.
const crc32 = (zlib as { readonly crc32?: (bytes: Uint8Array, value: number) => number }).crc32;

/** Return a source over the bundle in a folder. */
export function nodeFolder(path: string): Source {
    if (typeof path === "string") return new FolderSource(new NodeFolder(resolve(path)));
    throw new RequestError(`path: found ${shown(path)}, expected the path of a folder`);
}

class NodeFolder implements Folder {
    readonly crc32 = crc32;
    readonly description;

    constructor(readonly where: string) {
        this.description = { kind: "node-folder", path: where };
    }

    async open(name: string): Promise<FolderFile> {
        const path = join(this.where, name);
        const handle = await naming(path, "opened", () => open(path, constants.O_RDONLY | nonBlocking));
        try {
            const found = await naming(path, "read", () => handle.stat());
            return new NodeFile(handle, path, regularSize(path, found));
        } catch (error) {
            await handle.close();
            throw error;
        }
    }

    async size(name: string): Promise<number> {
        const path = join(this.where, name);
        return regularSize(path, await naming(path, "read", () => stat(path)));
    }

    // ONNX Runtime reads no link to a file in another folder (check 13), as in the cache of Hugging Face.
    async localFile(
        { name }: WholeFile,
        options: Parameters<NonNullable<Source["localFile"]>>[1] = {},
    ): Promise<LocalFile | undefined> {
        const path = join(this.where, name);
        const real = await naming(path, "read", () => realpath(path));
        if (basename(real) !== name) return undefined;
        const hash = createHash("sha256");
        await naming(path, "read", async () => {
            let loaded = 0;
            for await (const part of createReadStream(real, { highWaterMark: hashedAtOnce })) {
                if (options.signal?.aborted) return;
                hash.update(part as Buffer);
                loaded += (part as Buffer).length;
                options.onBytes?.(loaded);
            }
        });
        options.signal?.throwIfAborted();
        return { folder: dirname(real), sha256: hash.digest("hex") };
    }
}

class NodeFile implements FolderFile {
    constructor(
        private readonly handle: FileHandle,
        private readonly path: string,
        readonly size: number,
    ) {}

    async read(offset: number, length: number): Promise<Uint8Array> {
        const bytes = allocate(length, this.path);
        let done = 0;
        while (done < length) {
            const from = done;
            const { bytesRead } = await naming(this.path, `read at byte ${offset + from}`, () =>
                this.handle.read(bytes, from, length - from, offset + from),
            );
            if (bytesRead === 0) return bytes.subarray(0, done);
            done += bytesRead;
        }
        return bytes;
    }

    async close(): Promise<void> {
        await this.handle.close();
    }
}

function regularSize(path: string, found: { isFile(): boolean; readonly size: number }): number {
    if (found.isFile()) return found.size;
    throw new BundleError(`${path}: is not a regular file, expected a file or a link to a file`);
}

async function naming<T>(path: string, what: string, work: () => Promise<T>): Promise<T> {
    try {
        return await work();
    } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        throw new BundleError(`${path}: cannot be ${what} (${reason})`, { cause: error });
    }
}
