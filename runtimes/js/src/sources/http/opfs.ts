/** The folder of a bundle in the origin private file system (OPFS), and why there is none. */

/** A FileSystemSyncAccessHandle: TypeScript has its type only for workers. */
export interface AccessHandle {
    read(into: Uint8Array, options: { readonly at: number }): number;
    write(bytes: Uint8Array, options: { readonly at: number }): number;
    truncate(size: number): void;
    getSize(): number;
    flush(): void;
    close(): void;
}

interface FileHandle {
    getFile(): Promise<Blob>;
    /** Undefined outside of workers. */
    createSyncAccessHandle?(): Promise<AccessHandle>;
}

interface DirectoryHandle {
    getDirectoryHandle(name: string, options?: { readonly create: boolean }): Promise<DirectoryHandle>;
    getFileHandle(name: string, options?: { readonly create: boolean }): Promise<FileHandle>;
    removeEntry(name: string): Promise<void>;
    keys(): AsyncIterable<string>;
}

/** The globals of browsers, all of which may be missing. */
interface Platform {
    readonly isSecureContext?: boolean;
    readonly navigator?: {
        readonly storage?: { getDirectory?(): Promise<DirectoryHandle> };
        readonly locks?: {
            request(
                name: string,
                options: { readonly ifAvailable: boolean },
                use: (lock: object | null) => Promise<void>,
            ): Promise<unknown>;
        };
    };
}

export interface Opfs {
    /** Undefined: there is no OPFS here. */
    readonly folder?: OpfsFolder;
    /** Why nothing can be written; "" if everything can. */
    readonly reason: string;
}

/** Return the folder of the bundle at an address. Only one of the owners of an address at a time may write. */
export async function openOpfs(base: URL): Promise<Opfs> {
    const { navigator, isSecureContext } = globalThis as unknown as Platform;
    const { storage, locks } = navigator ?? {};
    if (storage?.getDirectory === undefined || locks === undefined) {
        if (isSecureContext === false) return { reason: "OPFS needs a secure context, such as https" };
        return { reason: "this platform has no OPFS" };
    }
    try {
        const name = await folderName(base);
        const root = await (await storage.getDirectory()).getDirectoryHandle("molkv-runtime", { create: true });
        const directory = await root.getDirectoryHandle(name, { create: true });
        const probe = await directory.getFileHandle("probe", { create: true });
        if (probe.createSyncAccessHandle === undefined) return { reason: "OPFS can be written only in a worker" };
        const release = await takeLock(locks, `molkv-runtime/${name}`);
        if (release !== undefined) return { folder: new OpfsFolder(directory, true, release), reason: "" };
        const nothing = (): Promise<void> => Promise.resolve();
        return {
            folder: new OpfsFolder(directory, false, nothing),
            reason: "another tab or worker uses the cache of this bundle",
        };
    } catch (error) {
        return { reason: `OPFS cannot be opened (${errorText(error)})` };
    }
}

/** Files of a bundle in OPFS. */
export class OpfsFolder {
    constructor(
        private readonly directory: DirectoryHandle,
        readonly writable: boolean,
        /** Let others write. */
        readonly release: () => Promise<void>,
    ) {}

    /** Return the content of a file, or undefined if it cannot be read. */
    async read(name: string): Promise<Uint8Array | undefined> {
        try {
            const file = await (await this.directory.getFileHandle(name)).getFile();
            return new Uint8Array(await file.arrayBuffer());
        } catch {
            return undefined;
        }
    }

    /** Return an access handle of a file, which is made if there is none. */
    async open(name: string): Promise<AccessHandle> {
        const file = await this.directory.getFileHandle(name, { create: true });
        return file.createSyncAccessHandle!();
    }

    async write(name: string, content: Uint8Array): Promise<void> {
        const handle = await this.open(name);
        try {
            handle.truncate(0);
            writeAll(handle, content, 0);
            handle.flush();
        } finally {
            handle.close();
        }
    }

    /** Remove a file, if it is there and not open. */
    async remove(name: string): Promise<void> {
        try {
            await this.directory.removeEntry(name);
        } catch {
            // It is not there, or is removed when the bundle is opened the next time.
        }
    }

    async names(): Promise<string[]> {
        const names: string[] = [];
        for await (const name of this.directory.keys()) names.push(name);
        return names;
    }
}

/** Write all bytes at a place. Throw if the browser writes fewer. */
export function writeAll(handle: AccessHandle, bytes: Uint8Array, at: number): void {
    const written = handle.write(bytes, { at });
    if (written !== bytes.length) throw new Error(`wrote ${written} of ${bytes.length} bytes`);
}

export function errorText(error: unknown): string {
    return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

/** The query of an address may be a signature that changes, so it is not part of the name. */
async function folderName(base: URL): Promise<string> {
    const bytes = new TextEncoder().encode(base.origin + base.pathname);
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(hash.subarray(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Take a lock, and return what releases it; undefined: somebody else has it. */
function takeLock(
    locks: NonNullable<NonNullable<Platform["navigator"]>["locks"]>,
    name: string,
): Promise<(() => Promise<void>) | undefined> {
    return new Promise((resolve, reject) => {
        const ended = locks.request(name, { ifAvailable: true }, (lock) => {
            if (lock === null) {
                resolve(undefined);
                return Promise.resolve();
            }
            return new Promise<void>((end) => {
                resolve(async () => {
                    end();
                    await ended;
                });
            });
        });
        ended.catch(reject);
    });
}
