/** The post-processor of a tokenizer: the special tokens before and after a text. */

import type { JsonValue } from "../../format/json.js";
import { partsOf, typeOf } from "./fields.js";

const mostIds = 1000; // special tokens of a text; a file could name long lists of ids many times
const largestId = 2 ** 31 - 1;

/** The ids that are added to a text. */
export interface PostProcessor {
    readonly before: readonly number[];
    readonly after: readonly number[];
}

/**
 * Return the special tokens of the field `post_processor`: undefined, or one or a Sequence of ByteLevel, which changes
 * no ids, and TemplateProcessing, whose template of a single text counts.
 */
export function readPostProcessor(field: JsonValue | undefined): PostProcessor {
    let found: PostProcessor | undefined;
    for (const part of field ? partsOf(field, "processors") : []) {
        if (typeOf(part, ["ByteLevel", "TemplateProcessing"]) === "ByteLevel") continue;
        // The library applies the template of two texts after an earlier template.
        if (found) throw part.error('"TemplateProcessing" a second time', "it once");
        found = readTemplate(part);
    }
    return found ?? { before: [], after: [] };
}

function readTemplate(part: JsonValue): PostProcessor {
    const before: number[] = [];
    const after: number[] = [];
    let isAfter = false;
    const template = part.get("single");
    const pieces = template.list();
    if (pieces.length > mostIds) throw template.error(`${pieces.length} parts`, `at most ${mostIds}`);
    for (const piece of pieces) {
        const sequence = piece.find("Sequence");
        if (sequence) {
            sequence.get("id").oneOf(["A"]);
            if (isAfter) throw piece.error("the text a second time", "it once");
            isAfter = true;
            continue;
        }
        const special = part.get("special_tokens").get(piece.get("SpecialToken").get("id").text());
        for (const id of special.get("ids").list()) (isAfter ? after : before).push(id.integer(0, largestId));
        const count = before.length + after.length;
        if (count > mostIds) throw template.error(`${count} ids`, `at most ${mostIds}`);
    }
    if (!isAfter) throw template.error("a template without the text", '{"Sequence": {"id": "A"}} in it');
    return { before, after };
}
