/** The header of a shard (docs/bundle-format.md, "Shard"). */

import { BundleError } from "../errors.js";
import { parseJson, quoted } from "./json.js";
import type { Shard, Table } from "./manifest.js";
import { parseRecordFields } from "./manifest-tables.js";
import { isSameField } from "./record.js";
import { parseSafetensorsHeader } from "./safetensors.js";

/**
 * Check that the header of a shard agrees with the manifest (check 9). `start` holds the first `shard.dataOffset` bytes
 * of the file.
 *
 * @throws BundleError The header is damaged or belongs to another table.
 */
export function checkShardHeader(start: Uint8Array, table: Table, shard: Shard, where: string): void {
    const size = shard.count * table.stride;
    // The tensor fills the rest of a file of this size, so its first record is at `shard.dataOffset`.
    const { metadata, tensors } = parseSafetensorsHeader(start, shard.dataOffset + size, where);
    const records = tensors.get("records");
    if (records === undefined || tensors.size !== 1) {
        throw differs(where, `found ${tensors.size} tensors, expected one with the name records`);
    }
    const shape = records.shape.join(", ");
    if (records.dtype !== "U8" || shape !== `${shard.count}, ${table.stride}`) {
        const expected = `U8 [${shard.count}, ${table.stride}]`;
        throw differs(where, `records: found ${records.dtype} [${shape}], expected ${expected}`);
    }
    const layout = metadata.get("layout");
    if (metadata.get("format") !== "molkv-table" || layout === undefined) {
        throw differs(where, 'found other metadata, expected the format "molkv-table" and a layout');
    }
    checkLayout(layout, table, shard, where);
}

function checkLayout(layout: string, table: Table, shard: Shard, where: string): void {
    const root = parseJson(layout, `${where} (layout)`);
    root.expectFields(["table", "first_row", "count", "stride", "fields"]);
    const id = root.get("table").text();
    if (id !== table.id) throw differs(where, `table: found ${quoted(id)}, expected "${table.id}"`);
    const numbers = { first_row: shard.firstRow, count: shard.count, stride: table.stride };
    for (const [name, expected] of Object.entries(numbers)) {
        const found = root.get(name).integer(0, Number.MAX_SAFE_INTEGER);
        if (found !== expected) throw differs(where, `${name}: found ${found}, expected ${expected}`);
    }
    const fields = parseRecordFields(root.get("fields"));
    if (fields.length !== table.fields.length || !fields.every((field, i) => isSameField(field, table.fields[i]!))) {
        throw differs(where, "fields: found another layout of records, expected that of the manifest");
    }
}

function differs(where: string, what: string): BundleError {
    return new BundleError(
        `${where}: its header differs from the manifest: ${what}. The file belongs to another bundle, or it is damaged; ` +
            "copy or export the bundle again",
    );
}
