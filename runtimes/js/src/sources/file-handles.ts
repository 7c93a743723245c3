/** A source over files of a browser: a folder that the user picked, or a folder of the origin private file system. */

import { BundleError, RequestError } from "../errors.js";
import { shown } from "../runtime/checks.js";
import type { Description, Source } from "../source.js";
import { type Folder, type FolderFile, FolderSource } from "./folder.js";

/** A folder; or its files, as an input element with `webkitdirectory` returns them; or its files by name. */
export type PickedFiles = FileSystemDirectoryHandle | readonly File[] | ReadonlyMap<string, File>;

/**
 * Return a source over the bundle in a folder or in a list of files. Of a list with paths the source takes only the
 * files in the folder of the manifest that is nearest to the top.
 */
export function fileHandles(directory: PickedFiles): Source {
    const given: unknown = directory;
    if (typeof given !== "object" || given === null) {
        throw new RequestError(`directory: found ${shown(given)}, expected a folder or its files`);
    }
    if ("getFileHandle" in directory) return new FolderSource(new DirectoryFolder(directory));
    return new FolderSource(new ListedFiles("get" in directory ? directory : filesByName(directory)));
}

function filesByName(files: readonly File[]): Map<string, File> {
    const parent = (file: File): string => file.webkitRelativePath.slice(0, -file.name.length);
    const manifests = files.filter((file) => file.name === "manifest.json").map(parent);
    const depth = (path: string): number => path.split("/").length;
    const folder = manifests.reduce((best, one) => (depth(one) < depth(best) ? one : best), manifests[0] ?? "");
    return new Map(files.filter((file) => parent(file) === folder).map((file) => [file.name, file]));
}

class DirectoryFolder implements Folder {
    readonly description: Description;
    readonly where: string;

    constructor(private readonly directory: FileSystemDirectoryHandle) {
        this.description = { kind: "file-handles", directory };
        this.where = directory.name === "" ? "the folder" : directory.name;
    }

    async open(name: string): Promise<FolderFile> {
        const where = `${this.where}/${name}`;
        const file = await naming(where, "opened", async () => (await this.directory.getFileHandle(name)).getFile());
        return new PickedFile(file, where);
    }

    async size(name: string): Promise<number> {
        return (await this.open(name)).size;
    }
}

class ListedFiles implements Folder {
    readonly description: Description;
    readonly where = "the chosen files";

    constructor(private readonly files: ReadonlyMap<string, File>) {
        this.description = { kind: "file-handles", directory: files };
    }

    open(name: string): Promise<FolderFile> {
        const file = this.files.get(name);
        if (file !== undefined) return Promise.resolve(new PickedFile(file, `${this.where}/${name}`));
        return Promise.reject(
            new BundleError(`${this.where}: ${name} is missing, expected all files of the bundle; choose its folder`),
        );
    }

    async size(name: string): Promise<number> {
        return (await this.open(name)).size;
    }
}

class PickedFile implements FolderFile {
    readonly size: number;

    constructor(
        private readonly file: File,
        private readonly where: string,
    ) {
        this.size = file.size;
    }

    async read(offset: number, length: number): Promise<Uint8Array> {
        const part = this.file.slice(offset, offset + length);
        return new Uint8Array(await naming(this.where, `read at byte ${offset}`, () => part.arrayBuffer()));
    }

    async close(): Promise<void> {
        // A File holds nothing that can be released.
    }
}

/** A browser says NotFoundError, TypeMismatchError (a folder), NotAllowedError, or NotReadableError (the file changed). */
async function naming<T>(where: string, what: string, work: () => Promise<T>): Promise<T> {
    try {
        return await work();
    } catch (error) {
        const reason = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
        throw new BundleError(`${where}: cannot be ${what} (${reason}); choose the folder of the bundle again`, {
            cause: error,
        });
    }
}
