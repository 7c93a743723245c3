/** The sources of browsers, made from their descriptions. */

import { RequestError } from "../errors.js";
import type { Description, Source } from "../source.js";
import { fileHandles, type PickedFiles } from "./file-handles.js";
import { httpBundle } from "./http-bundle.js";

/** Return the source that another thread described. @throws RequestError Browsers have no such source. */
export function webSourceFrom(description: Description): Source {
    const { kind, url, directory, ...options } = description;
    if (kind === "file-handles") return fileHandles(directory as PickedFiles);
    if (kind === "http-bundle") return httpBundle(url as string, options);
    throw new RequestError(`source: found kind ${JSON.stringify(kind)}, expected "file-handles" or "http-bundle"`);
}
