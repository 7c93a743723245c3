/** A file in OPFS that is downloaded in parts, and its state, which says whether it is complete. */

import { type AccessHandle, errorText, type OpfsFolder, writeAll } from "./opfs.js";

/** The state of a stored file: a JSON file beside it, which is written after the content is on the disk. */
interface State {
    readonly complete: boolean;
    /** ETag or Last-Modified of the server's file; "" if it is not known. */
    readonly version: string;
}

const flushEvery = 8 << 20; // bytes that a crash of the browser may lose

const contentName = (sha256: string): string => `file-${sha256}`;
const stateName = (sha256: string): string => `file-${sha256}.state`;

/** Return the content of a file that was downloaded completely. */
export async function readComplete(folder: OpfsFolder, sha256: string, size: number): Promise<Uint8Array | undefined> {
    const state = parseState(await folder.read(stateName(sha256)));
    if (!state.complete) return undefined;
    const content = await folder.read(contentName(sha256));
    return content?.length === size ? content : undefined;
}

export class PartialFile {
    private unflushed = 0;
    private failed = false;

    private constructor(
        private readonly content: AccessHandle,
        private readonly state: AccessHandle,
        private readonly onFailure: (reason: string) => void,
        public version: string,
    ) {}

    /** Open what is stored of a file, or begin it. `refresh`: begin it anew. Return undefined if that is impossible. */
    static async open(
        folder: OpfsFolder,
        sha256: string,
        refresh: boolean,
        onFailure: (reason: string) => void,
    ): Promise<PartialFile | undefined> {
        let content: AccessHandle | undefined;
        try {
            content = await folder.open(contentName(sha256));
            const state = await folder.open(stateName(sha256));
            const bytes = new Uint8Array(state.getSize());
            state.read(bytes, { at: 0 });
            const file = new PartialFile(content, state, onFailure, parseState(bytes).version);
            if (refresh) file.restart("");
            return file;
        } catch (error) {
            content?.close();
            onFailure(`files are not kept (${errorText(error)})`);
            return undefined;
        }
    }

    /** Return the bytes that are stored, if they are not more than `size`. */
    stored(size: number): Uint8Array {
        const found = this.content.getSize();
        const bytes = new Uint8Array(found <= size ? found : 0);
        this.content.read(bytes, { at: 0 });
        return bytes;
    }

    /** Forget the content: another version of the file follows. */
    restart(version: string): void {
        this.attempt(() => {
            this.writeState({ complete: false, version });
            this.content.truncate(0);
        });
        this.version = version;
    }

    write(bytes: Uint8Array, at: number): void {
        this.attempt(() => {
            writeAll(this.content, bytes, at);
            this.unflushed += bytes.length;
            if (this.unflushed < flushEvery) return;
            this.content.flush();
            this.unflushed = 0;
        });
    }

    complete(): void {
        this.attempt(() => {
            this.content.flush();
            this.writeState({ complete: true, version: this.version });
        });
    }

    close(): void {
        this.attempt(() => {
            this.content.flush();
        });
        this.content.close();
        this.state.close();
    }

    private writeState(state: State): void {
        this.state.truncate(0);
        writeAll(this.state, new TextEncoder().encode(JSON.stringify(state)), 0);
        this.state.flush();
    }

    /** The first failure ends the writing and frees the space; the download goes on. */
    private attempt(work: () => void): void {
        if (this.failed) return;
        try {
            work();
        } catch (error) {
            this.failed = true;
            this.onFailure(`files are not kept (${errorText(error)})`);
            try {
                this.state.truncate(0);
                this.content.truncate(0);
            } catch {
                // Without its state the file is never taken for complete.
            }
        }
    }
}

function parseState(bytes: Uint8Array | undefined): State {
    try {
        const value = JSON.parse(new TextDecoder().decode(bytes)) as Partial<State> | null;
        return {
            complete: value?.complete === true,
            version: typeof value?.version === "string" ? value.version : "",
        };
    } catch {
        return { complete: false, version: "" };
    }
}
