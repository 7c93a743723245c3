/** The parts of tokenizer_config.json that chat templates need. */

import type { JsonValue } from "../../format/json.js";

export const TOKENIZER_CONFIG = "tokenizer_config.json";

const NAMED_TOKENS = ["additional_special_tokens", "model_specific_special_tokens", "extra_special_tokens"];

/**
 * Return the chat template in tokenizer_config.json: a text, or the one named "default" of a list.
 *
 * @throws BundleError There is none.
 */
export function templateField(config: JsonValue): string {
    const field = config.get("chat_template");
    if (field.type !== "list") return field.text();
    const named = field.list().findLast((each) => each.type === "object" && textOf(each.find("name")) === "default");
    if (named) return named.get("template").text();
    throw field.error("no template", 'one named "default"');
}

/** Return the special tokens that a template may use, by name. A later object has priority. */
export function specialTokens(config: JsonValue): Map<string, string> {
    const named = NAMED_TOKENS.map((name) => config.find(name)).filter((each) => each?.type === "object");
    const entries = [
        ...[...config.fields()].filter(([name]) => name.endsWith("_token")),
        ...named.flatMap((each) => [...each!.fields()]),
    ];
    const tokens = new Map<string, string>();
    for (const [name, value] of entries) {
        const text = textOf(value.type === "object" ? value.find("content") : value);
        if (text === undefined) tokens.delete(name);
        else tokens.set(name, text);
    }
    return tokens;
}

function textOf(value: JsonValue | undefined): string | undefined {
    return value?.type === "text" ? value.text() : undefined;
}
