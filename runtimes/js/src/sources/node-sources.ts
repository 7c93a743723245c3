/** The sources of Node, made from their descriptions. */

import { RequestError } from "../errors.js";
import type { Description, Source } from "../source.js";
import { httpBundle } from "./http-bundle.js";
import { nodeFolder } from "./node-folder.js";

/** Return the source that another thread described. @throws RequestError Node has no such source. */
export function nodeSourceFrom(description: Description): Source {
    const { kind, url, path, ...options } = description;
    if (kind === "node-folder") return nodeFolder(path as string);
    if (kind === "http-bundle") return httpBundle(url as string, options);
    throw new RequestError(`source: found kind ${JSON.stringify(kind)}, expected "node-folder" or "http-bundle"`);
}
