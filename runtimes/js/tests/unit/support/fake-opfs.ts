/**
 * An origin private file system in memory, with what makes the real one difficult: access handles that exclude each
 * other, a quota, locks of other tabs, and tabs that crash before the data is on the disk.
 */

interface Content {
    /** What readers see, and what is left after a crash. */
    bytes: Uint8Array<ArrayBuffer>;
    durable: Uint8Array<ArrayBuffer>;
    locked: boolean;
}

const failure = (name: string, message: string): DOMException => new DOMException(message, name);

export class FakeOpfs {
    /** Bytes that all files together may have. */
    quota = Infinity;
    /** What `getDirectory` fails with, as in the private mode of some browsers. */
    refusal: Error | undefined;
    /** Whether this thread is a worker, where files have access handles. */
    worker = true;
    readonly root = new FakeDirectory("", this);
    private readonly handles = new Set<FakeAccessHandle>();
    private readonly locks = new Set<string>();
    private releases: (() => void)[] = [];

    /** Return what the global `navigator` is for this thread. */
    navigator(): unknown {
        const getDirectory = (): Promise<FakeDirectory> =>
            this.refusal === undefined ? Promise.resolve(this.root) : Promise.reject(this.refusal);
        const request = (
            name: string,
            options: { readonly ifAvailable: boolean },
            use: (lock: object | null) => Promise<unknown>,
        ): Promise<unknown> => {
            if (!options.ifAvailable) throw new Error("the tests have only locks with ifAvailable");
            return this.request(name, use);
        };
        return { storage: { getDirectory }, locks: { request } };
    }

    /** Kill the tab: its locks and handles are released, and what it did not flush is lost. */
    crash(): void {
        for (const handle of this.handles) handle.abandon();
        this.handles.clear();
        for (const content of this.root.contents()) content.bytes = content.durable;
        for (const release of this.releases) release();
        this.releases = [];
        this.locks.clear();
    }

    used(): number {
        return [...this.root.contents()].reduce((sum, content) => sum + content.bytes.length, 0);
    }

    /** Return the files of all folders by their names. */
    files(): Map<string, Uint8Array> {
        return new Map([...this.root.allFiles()].map(([name, content]) => [name, content.bytes]));
    }

    /** Change a file from outside. */
    damage(name: string, change: (bytes: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer>): void {
        for (const [found, content] of this.root.allFiles()) {
            if (found !== name) continue;
            content.bytes = change(content.bytes.slice());
            content.durable = content.bytes;
            return;
        }
        throw new Error(`there is no file ${name}`);
    }

    open(content: Content): FakeAccessHandle {
        if (content.locked) throw failure("NoModificationAllowedError", "another access handle is open");
        const handle = new FakeAccessHandle(content, this, () => this.handles.delete(handle));
        this.handles.add(handle);
        return handle;
    }

    private async request(name: string, use: (lock: object | null) => Promise<unknown>): Promise<unknown> {
        if (this.locks.has(name)) return use(null);
        this.locks.add(name);
        const crashed = new Promise<void>((resolve) => this.releases.push(resolve));
        try {
            return await Promise.race([use({}), crashed]);
        } finally {
            this.locks.delete(name);
        }
    }
}

class FakeDirectory {
    readonly kind = "directory";
    private readonly entries = new Map<string, FakeDirectory | FakeFile>();

    constructor(
        readonly name: string,
        private readonly opfs: FakeOpfs,
    ) {}

    async getDirectoryHandle(name: string, options: { readonly create?: boolean } = {}): Promise<FakeDirectory> {
        const found = await this.entry(name, options.create === true && (() => new FakeDirectory(name, this.opfs)));
        if (found instanceof FakeDirectory) return found;
        throw failure("TypeMismatchError", `${name} is a file`);
    }

    async getFileHandle(name: string, options: { readonly create?: boolean } = {}): Promise<FakeFile> {
        const found = await this.entry(name, options.create === true && (() => new FakeFile(name, this.opfs)));
        if (found instanceof FakeFile) return found;
        throw failure("TypeMismatchError", `${name} is a folder`);
    }

    async removeEntry(name: string): Promise<void> {
        const found = await this.entry(name, false);
        if (found instanceof FakeFile && found.content.locked) {
            throw failure("NoModificationAllowedError", `${name} is in use`);
        }
        this.entries.delete(name);
    }

    async *keys(): AsyncGenerator<string> {
        for (const name of [...this.entries.keys()]) yield await Promise.resolve(name);
    }

    *allFiles(): Generator<[string, Content]> {
        for (const [name, entry] of this.entries) {
            if (entry instanceof FakeFile) yield [name, entry.content];
            else yield* entry.allFiles();
        }
    }

    *contents(): Generator<Content> {
        for (const [, content] of this.allFiles()) yield content;
    }

    private async entry(
        name: string,
        make: false | (() => FakeDirectory | FakeFile),
    ): Promise<FakeDirectory | FakeFile> {
        await Promise.resolve();
        if (name === "" || name === "." || name === ".." || name.includes("/"))
            throw new TypeError("the name is invalid");
        const found = this.entries.get(name) ?? (make === false ? undefined : make());
        if (found === undefined) throw failure("NotFoundError", `there is no ${name}`);
        this.entries.set(name, found);
        return found;
    }
}

class FakeFile {
    readonly kind = "file";
    readonly content: Content = { bytes: new Uint8Array(0), durable: new Uint8Array(0), locked: false };
    readonly createSyncAccessHandle: (() => Promise<FakeAccessHandle>) | undefined;

    constructor(
        readonly name: string,
        opfs: FakeOpfs,
    ) {
        if (!opfs.worker) return;
        this.createSyncAccessHandle = async () => {
            await Promise.resolve();
            return opfs.open(this.content);
        };
    }

    async getFile(): Promise<File> {
        return Promise.resolve(new File([this.content.bytes], this.name));
    }
}

class FakeAccessHandle {
    private open = true;

    constructor(
        private readonly content: Content,
        private readonly opfs: FakeOpfs,
        private readonly onClose: () => void,
    ) {
        content.locked = true;
    }

    read(into: Uint8Array, { at }: { readonly at: number }): number {
        this.check();
        const part = this.content.bytes.subarray(at, at + into.length);
        into.set(part);
        return part.length;
    }

    write(bytes: Uint8Array, { at }: { readonly at: number }): number {
        this.check();
        this.resize(Math.max(this.content.bytes.length, at + bytes.length));
        this.content.bytes.set(bytes, at);
        return bytes.length;
    }

    truncate(size: number): void {
        this.check();
        this.resize(size);
    }

    getSize(): number {
        this.check();
        return this.content.bytes.length;
    }

    flush(): void {
        this.check();
        this.content.durable = this.content.bytes.slice();
    }

    close(): void {
        if (!this.open) return;
        this.abandon();
        this.onClose();
    }

    abandon(): void {
        this.open = false;
        this.content.locked = false;
    }

    private resize(size: number): void {
        const more = size - this.content.bytes.length;
        if (more > 0 && this.opfs.used() + more > this.opfs.quota)
            throw failure("QuotaExceededError", "no space is left");
        const next = new Uint8Array(size);
        next.set(this.content.bytes.subarray(0, size));
        this.content.bytes = next;
    }

    private check(): void {
        if (!this.open) throw failure("InvalidStateError", "the access handle is closed");
    }
}
