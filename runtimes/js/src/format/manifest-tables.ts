/** The field `tables` of a manifest: the table "experts", its records and its shards. */

import { mostHeaderBytes } from "./safetensors.js";
import type { JsonValue } from "./json.js";
import type { FileInfo, RecordField, Shard, Table, TableDType } from "./manifest.js";

const tableDtypes: readonly TableDType[] = ["float32", "float16", "int8", "int4", "nf4"];

/** Parse the tables, and check that the shards hold each row once, in order. */
export function parseTables(tables: JsonValue, vocabSize: number, files: ReadonlyMap<string, FileInfo>): Table {
    tables.expectFields(["experts"]);
    const table = tables.get("experts");
    table.expectFields(["index", "rows", "id", "dtype", "stride", "fields", "shards"]);
    table.get("index").oneOf(["token_id"]);
    const rows = table.get("rows").integer(vocabSize, vocabSize);
    const stride = table.get("stride").integer(1, Number.MAX_SAFE_INTEGER);
    return {
        rows,
        id: parseDigits(table.get("id"), 16),
        dtype: table.get("dtype").oneOf(tableDtypes),
        stride,
        fields: parseRecordFields(table.get("fields")),
        shards: parseShards(table.get("shards"), rows, stride, files),
    };
}

/** Parse the field `fields` of a table or of a shard's header. */
export function parseRecordFields(fields: JsonValue): RecordField[] {
    return fields.list().map((field) => {
        field.expectFields(["name", "dtype", "shape", "offset"]);
        return {
            name: field.get("name").text(),
            dtype: field.get("dtype").oneOf(tableDtypes),
            shape: field
                .get("shape")
                .list()
                .map((size) => size.integer(0, Number.MAX_SAFE_INTEGER)),
            offset: field.get("offset").integer(0, Number.MAX_SAFE_INTEGER),
        };
    });
}

/** Return a text of lower-case hexadecimal digits. */
export function parseDigits(value: JsonValue, count: number): string {
    const digits = value.text();
    if (digits.length === count && /^[0-9a-f]*$/.test(digits)) return digits;
    throw value.error("another text", `${count} lower-case hexadecimal digits`);
}

/** Return the size and the hash of a file that the manifest names. */
export function namedFile(name: JsonValue, files: ReadonlyMap<string, FileInfo>): FileInfo {
    const found = files.get(name.text());
    if (found !== undefined) return found;
    throw name.error("another name", "a file that is listed under files");
}

function parseShards(shards: JsonValue, rows: number, stride: number, files: ReadonlyMap<string, FileInfo>): Shard[] {
    const found: Shard[] = [];
    let next = 0;
    for (const shard of shards.list()) {
        shard.expectFields(["file", "first_row", "count", "data_offset"]);
        if (next === rows) throw shard.error("a further shard", `no more than ${rows} rows`);
        const { size } = namedFile(shard.get("file"), files);
        const parsed: Shard = {
            file: shard.get("file").text(),
            firstRow: shard.get("first_row").integer(next, next),
            count: shard.get("count").integer(1, rows - next),
            dataOffset: shard.get("data_offset").integer(8, 8 + mostHeaderBytes),
        };
        if (size - parsed.dataOffset !== parsed.count * stride) {
            const expected = `data_offset and then ${parsed.count} records of ${stride} bytes`;
            throw shard.error(`a file of ${size} bytes`, expected);
        }
        next += parsed.count;
        found.push(parsed);
    }
    if (next !== rows) throw shards.error(`${next} rows`, String(rows));
    return found;
}
