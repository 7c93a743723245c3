import { expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import type { Manifest } from "../../../src/format/manifest.js";
import { parseManifest } from "../../../src/format/read-manifest.js";
import { checkShardHeader } from "../../../src/format/shard.js";
import { bundleNames, patchedBundleFile, patchedCases, readBundleFile } from "../support/conformance.js";

function checkAll({ experts }: Manifest, read: (file: string) => Uint8Array): void {
    for (const shard of experts.shards) {
        checkShardHeader(read(shard.file).subarray(0, shard.dataOffset), experts, shard, shard.file);
    }
}

test.each(bundleNames)("the shards of %s agree with the manifest", async (name) => {
    const manifest = await parseManifest(readBundleFile(name, "manifest.json"), "manifest.json");
    checkAll(manifest, (file) => readBundleFile(name, file));
});

test.each([
    ["a foreign shard", "table: found"],
    ["a bit of the shard's header", "header"],
    ["another table id", "table: found"],
])("%s is refused", async (name, why) => {
    const { bundle, patches } = patchedCases("damage").find((one) => one.name === `molkv/damage/${name}`)!;
    const manifest = await parseManifest(patchedBundleFile(bundle, "manifest.json", patches)!, "manifest.json");
    const run = () => {
        checkAll(manifest, (file) => patchedBundleFile(bundle, file, patches)!);
    };
    expect(run).toThrow(BundleError);
    expect(run).toThrow(why);
});

test.each<[string, string, string, string]>([
    ["another row", '\\"first_row\\":0', '\\"first_row\\":7', "first_row: found 7, expected 0"],
    ["another count", '\\"count\\":61', '\\"count\\":62', "count: found 62, expected 61"],
    ["a count with a fraction", '\\"count\\":61', '\\"count\\":6.', "not valid JSON"],
    ["another name", '"records"', '"recordz"', "expected one with the name records"],
    ["another dtype", '"U8"', '"I8"', "records: found I8"],
    ["another format", '"molkv-table"', '"molkv-tables', "header"],
    ["another format of this length", '"molkv-table"', '"molkv-tablE"', "other metadata"],
    ["another field", '\\"embedding\\"', '\\"embeddinG\\"', "fields: found another layout"],
    ["a key twice", '\\"count\\":61', '\\"table\\":61', 'the key "table" a second time'],
])("%s is refused", async (_name, before, after, why) => {
    const manifest = await parseManifest(readBundleFile("molkv", "manifest.json"), "manifest.json");
    const run = () => {
        checkAll(manifest, (file) => {
            const text = new TextDecoder("latin1").decode(readBundleFile("molkv", file));
            expect(text).toContain(before);
            return Uint8Array.from(text.replace(before, after), (character) => character.charCodeAt(0));
        });
    };
    expect(run).toThrow(BundleError);
    expect(run).toThrow(why);
});

test("a header that ends elsewhere is refused", async () => {
    const { experts } = await parseManifest(readBundleFile("molkv", "manifest.json"), "manifest.json");
    const [shard] = experts.shards;
    const bytes = readBundleFile("molkv", shard!.file);
    const longer = { ...shard!, dataOffset: shard!.dataOffset + experts.stride, count: shard!.count - 1 };
    const run = () => {
        checkShardHeader(bytes.subarray(0, longer.dataOffset), experts, longer, shard!.file);
    };
    expect(run).toThrow(BundleError);
});
