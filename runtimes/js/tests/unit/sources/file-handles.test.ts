import { expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import { fileHandles, type PickedFiles } from "../../../src/sources/file-handles.js";
import { FakeOpfs } from "../support/fake-opfs.js";
import { testTable } from "../support/tables.js";

const { table, files, record } = testTable();
const manifest = new TextEncoder().encode('{"a": 1}');

function fileOf(name: string, bytes: Uint8Array, path = ""): File {
    const file = new File([bytes.slice()], name);
    Object.defineProperty(file, "webkitRelativePath", { value: path });
    return file;
}

async function folder(): Promise<FileSystemDirectoryHandle> {
    const opfs = new FakeOpfs();
    const directory = await opfs.root.getDirectoryHandle("demo", { create: true });
    for (const [name, bytes] of [...files, ["manifest.json", manifest] as const]) {
        const handle = await directory.getFileHandle(name, { create: true });
        const access = await handle.createSyncAccessHandle!();
        access.write(bytes, { at: 0 });
        access.close();
    }
    await directory.getDirectoryHandle("nested", { create: true });
    return directory as unknown as FileSystemDirectoryHandle;
}

const allFiles = [...files, ["manifest.json", manifest] as const];
const list = allFiles.map(([name, bytes]) => fileOf(name, bytes, `top/demo/${name}`));
const kinds: Record<string, () => PickedFiles | Promise<PickedFiles>> = {
    "a folder": folder,
    "a list with paths": () => [
        fileOf("manifest.json", new Uint8Array(9), "top/demo/old/manifest.json"),
        fileOf("experts-0.safetensors", new Uint8Array(9), "top/experts-0.safetensors"),
        ...list,
        fileOf("experts-1.safetensors", new Uint8Array(9), "top/demo/old/experts-1.safetensors"),
    ],
    "a list without paths": () => allFiles.map(([name, bytes]) => fileOf(name, bytes)),
    "a map": () => new Map(allFiles.map(([name, bytes]) => [name, fileOf(name, bytes)])),
};

test.each(Object.entries(kinds))("%s is read", async (_, make) => {
    const source = fileHandles(await make());
    expect(await source.manifest(100)).toEqual(manifest);
    await source.checkSizes(table.shards.map((shard) => ({ name: shard.file, size: shard.size })));
    const name = "experts-1.safetensors";
    const { size } = table.shards[1]!;
    expect(await source.load({ name, size, sha256: "" })).toEqual(files.get(name));
    expect(await source.readRange({ name, size }, 128, 64)).toEqual(record(10));
    const reader = await source.openTable(table);
    expect(await reader.read([12, 0, 1])).toEqual([12, 0, 1].map(record));
    for (const missing of ["absent", "nested"]) {
        await expect(source.load({ name: missing, size: 1, sha256: "" })).rejects.toThrow(BundleError);
    }
    await expect(source.load({ name: "../x", size: 1, sha256: "" })).rejects.toThrow("expected a plain name");
    await source.close();
});

test("a description holds what a worker can receive", async () => {
    const directory = await folder();
    expect(fileHandles(directory).description).toEqual({ kind: "file-handles", directory });
    const description = fileHandles(list).description;
    expect(description?.directory).toEqual(new Map(list.map((file) => [file.name, file])));
});

test("a file that changed after the user picked it is an error", async () => {
    const file = fileOf("manifest.json", manifest);
    file.slice = () =>
        ({ arrayBuffer: () => Promise.reject(new DOMException("it changed", "NotReadableError")) }) as unknown as Blob;
    const error = fileHandles([file]).manifest(100);
    await expect(error).rejects.toThrow(/manifest.json: cannot be read at byte 0 \(NotReadableError: it changed\)/);
    await expect(error).rejects.toThrow(BundleError);
});
