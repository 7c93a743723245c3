import { execFileSync } from "node:child_process";
import {
    mkdirSync,
    mkdtempSync,
    readdirSync,
    readFileSync,
    rmSync,
    symlinkSync,
    truncateSync,
    writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { fileURLToPath } from "node:url";

import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import { nodeFolder } from "../../../src/sources/node-folder.js";
import { checksumOf, locate, testTable } from "../support/tables.js";

const bundles = fileURLToPath(new URL("../../../../conformance/bundles", import.meta.url));

let folder: string;

beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "node-folder-"));
});

afterEach(() => {
    rmSync(folder, { recursive: true });
});

function writeTable(options?: Parameters<typeof testTable>[0]): ReturnType<typeof testTable> {
    const made = testTable(options);
    for (const [name, content] of made.files) writeFileSync(join(folder, name), content);
    return made;
}

async function failure(promise: Promise<unknown>): Promise<BundleError> {
    const error: unknown = await promise.then(
        () => undefined,
        (found: unknown) => found,
    );
    expect(error).toBeInstanceOf(BundleError);
    expect((error as BundleError).message).not.toContain("\n");
    return error as BundleError;
}

test("the checksum of the tests is the one of the document", () => {
    const record = new Uint8Array(64);
    expect(checksumOf("0123456789abcdef", 258, record)).toBe(0xde7960de);
});

interface Manifest {
    readonly tables: {
        readonly experts: {
            readonly id: string;
            readonly rows: number;
            readonly stride: number;
            readonly shards: readonly { file: string; first_row: number; count: number; data_offset: number }[];
        };
    };
    readonly files: Readonly<Record<string, { readonly size: number; readonly sha256: string }>>;
}

describe.each(readdirSync(bundles))("conformance bundle %s", (name) => {
    test("every file and every record is read", async () => {
        const source = nodeFolder(join(bundles, name));
        const bytes = await source.manifest(1 << 24);
        expect(Buffer.from(bytes).equals(readFileSync(join(bundles, name, "manifest.json")))).toBe(true);
        const manifest = JSON.parse(new TextDecoder().decode(bytes)) as Manifest;
        const files = Object.entries(manifest.files).map(([file, info]) => ({ name: file, ...info }));
        await source.checkSizes(files);
        for (const file of files) {
            const seen: number[] = [];
            const content = await source.load(file, { onBytes: (loaded) => seen.push(loaded) });
            expect(Buffer.from(content).equals(readFileSync(join(bundles, name, file.name)))).toBe(true);
            expect(seen.at(-1)).toBe(file.size);
        }
        const { id, rows, stride, shards } = manifest.tables.experts;
        const table = locate(
            id,
            rows,
            stride,
            shards.map((shard) => ({
                file: shard.file,
                firstRow: shard.first_row,
                count: shard.count,
                dataOffset: shard.data_offset,
                size: manifest.files[shard.file]!.size,
            })),
        );
        const reader = await source.openTable(table);
        expect(await reader.read([...Array(rows).keys()])).toHaveLength(rows);
        await source.close();
    });
});

test("records come in the order of the rows, over runs and shards", async () => {
    const { table, record } = writeTable();
    const source = nodeFolder(folder);
    const reader = await source.openTable(table);
    const rows = [15, 3, 9, 10, 4, 0, 5];
    expect(await reader.read(rows)).toEqual(rows.map(record));
    expect(await reader.read([7])).toEqual([record(7)]);
    expect(await reader.read([])).toEqual([]);
    await reader.close();
    expect((await failure(reader.read([7]))).message).toContain("was closed");
    const again = await source.openTable(table);
    expect(await again.read([8])).toEqual([record(8)]);
    await source.close();
});

test("runs longer than one read are divided", async () => {
    const { table, record } = writeTable({ stride: 65536, counts: [40] });
    const reader = await nodeFolder(folder).openTable(table);
    const records = await reader.read([...Array(40).keys()]);
    expect(records.every((found, row) => Buffer.from(found).equals(record(row)))).toBe(true);
    await reader.close();
});

test("a damaged record is an error, its neighbours are not", async () => {
    const { table, files, record } = writeTable();
    const content = files.get("experts-1.safetensors")!;
    content[128 + 64 * 2 + 5]! ^= 1;
    writeFileSync(join(folder, "experts-1.safetensors"), content);
    const reader = await nodeFolder(folder).openTable(table);
    const { message } = await failure(reader.read([11, 12, 13]));
    expect(message).toContain("experts-1.safetensors: record 2 (token id 12) fails its checksum");
    expect(await reader.read([11, 13])).toEqual([11, 13].map(record));
    await reader.close();
});

test("a file that is truncated while it is open is an error", async () => {
    const { table } = writeTable();
    const reader = await nodeFolder(folder).openTable(table);
    truncateSync(join(folder, "experts-1.safetensors"), 128 + 64 * 3);
    expect((await failure(reader.read([14]))).message).toContain("truncated while it was open");
    await reader.close();
});

test("sizes are checked", async () => {
    const { table } = writeTable();
    const source = nodeFolder(folder);
    const name = "experts-0.safetensors";
    await source.checkSizes([{ name, size: 128 + 640 }]);
    expect((await failure(source.checkSizes([{ name, size: 1 }]))).message).toContain("has 768 bytes, expected 1");
    expect((await failure(source.load({ name, size: 2 ** 40, sha256: "" }))).message).toContain("has 768 bytes");
    const shards = table.shards.map((shard) => ({ ...shard, size: shard.size + 1 }));
    await failure(source.openTable({ ...table, shards }));
    await failure(source.readRange({ name, size: 768 }, 760, 9));
    expect(await source.readRange({ name, size: 768 }, 126, 3)).toEqual(Uint8Array.of(0x20, 0x20, 35));
    await source.close();
});

test("a large manifest is refused", async () => {
    writeFileSync(join(folder, "manifest.json"), "x".repeat(101));
    expect((await failure(nodeFolder(folder).manifest(100))).message).toContain("has 101 bytes, expected at most 100");
});

test("links to files are read, folders and pipes are not", async () => {
    writeFileSync(join(folder, "blob"), "abc");
    symlinkSync("blob", join(folder, "link"));
    mkdirSync(join(folder, "nested"));
    execFileSync("mkfifo", [join(folder, "pipe")]);
    const source = nodeFolder(folder);
    await source.checkSizes([{ name: "link", size: 3 }]);
    expect(await source.load({ name: "link", size: 3, sha256: "" })).toEqual(Uint8Array.of(97, 98, 99));
    for (const name of ["nested", "pipe"]) {
        expect((await failure(source.load({ name, size: 0, sha256: "" }))).message).toContain("not a regular file");
        await failure(source.checkSizes([{ name, size: 0 }]));
    }
    expect((await failure(source.load({ name: "absent", size: 0, sha256: "" }))).message).toContain("absent");
});

test.each(["", ".", "..", "../x", "a/b", "a\\b", "a\0b", "/etc/hostname"])(
    "the name %j cannot leave the folder",
    async (name) => {
        const source = nodeFolder(folder);
        await failure(source.load({ name, size: 1, sha256: "" }));
        await failure(source.checkSizes([{ name, size: 1 }]));
        await failure(source.readRange({ name, size: 1 }, 0, 1));
        const shards = [{ file: name, firstRow: 0, count: 1, dataOffset: 0, size: 64 }];
        await failure(source.openTable(locate("0123456789abcdef", 1, 64, shards)));
    },
);

test("a signal ends every read with its reason", async () => {
    const { table } = writeTable();
    const source = nodeFolder(folder);
    const reader = await source.openTable(table);
    const signal = AbortSignal.abort("enough");
    const name = "experts-0.safetensors";
    await expect(source.manifest(10, { signal })).rejects.toBe("enough");
    await expect(source.load({ name, size: 768, sha256: "" }, { signal })).rejects.toBe("enough");
    await expect(source.checkSizes([{ name, size: 768 }], { signal })).rejects.toBe("enough");
    await expect(source.readRange({ name, size: 768 }, 0, 1, { signal })).rejects.toBe("enough");
    await expect(reader.read([1], { signal })).rejects.toBe("enough");
    await source.close();
});

test("the source uses Node's CRC-32 and describes itself", () => {
    const source = nodeFolder(folder);
    expect(source.crc32).toBe(crc32);
    expect(source.crc32!(new TextEncoder().encode("123456789"), 0)).toBe(0xcbf43926);
    expect(source.description).toEqual({ kind: "node-folder", path: folder });
    expect(source.checksShards).toBe(true);
});

test("a file or a link to a file of the same name can be read by a backend, another link cannot", async () => {
    // The hash of "abc" in the examples of FIPS 180-2.
    const sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (const place of ["target", "bundle"]) mkdirSync(join(folder, place));
    writeFileSync(join(folder, "target", "linked"), "abc");
    writeFileSync(join(folder, "bundle", "plain"), "abc");
    symlinkSync("../target/linked", join(folder, "bundle", "linked"));
    symlinkSync("../target/linked", join(folder, "bundle", "renamed"));
    const source = nodeFolder(join(folder, "bundle"));
    const found = (name: string): unknown => source.localFile!({ name, size: 3, sha256: "" });
    expect(await found("plain")).toEqual({ folder: join(folder, "bundle"), sha256 });
    expect(await found("linked")).toEqual({ folder: join(folder, "target"), sha256 });
    expect(await found("renamed")).toBeUndefined();
    await failure(source.localFile!({ name: "absent", size: 3, sha256: "" }));
    const reason = new Error("enough");
    const aborted = source.localFile!({ name: "plain", size: 3, sha256: "" }, { signal: AbortSignal.abort(reason) });
    await expect(aborted).rejects.toBe(reason);
});
