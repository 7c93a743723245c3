/** The field `model` of a manifest: the choice of the family. No other file asks which family a model is of. */

import { parseGemma4 } from "./gemma4-model.js";
import type { JsonValue } from "./json.js";
import { parseLookup } from "./lookup-model.js";
import type { ModelConfig } from "./manifest.js";

/** Parse and check a model's configuration. */
export function parseModel(model: JsonValue): ModelConfig {
    const family = model.get("model_type").oneOf(["molkv", "mole", "gemma4_text"]);
    return family === "gemma4_text" ? parseGemma4(model) : parseLookup(model, family);
}
