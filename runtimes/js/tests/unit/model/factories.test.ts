import { describe, expect, it } from "vitest";

import { onnxruntimeNode } from "../../../src/backends/onnxruntime-node.js";
import { onnxruntimeWeb } from "../../../src/backends/onnxruntime-web.js";
import { RequestError } from "../../../src/errors.js";
import { fileHandles } from "../../../src/sources/file-handles.js";
import { httpBundle } from "../../../src/sources/http-bundle.js";
import { nodeFolder } from "../../../src/sources/node-folder.js";

// Callers in plain JavaScript can give anything.
const url = "https://example.org/bundle/";
const wrong: Record<string, readonly [() => unknown, string]> = {
    "nodeFolder()": [() => (nodeFolder as () => unknown)(), "path: found undefined"],
    "fileHandles()": [() => (fileHandles as () => unknown)(), "directory: found undefined"],
    "httpBundle(url, null)": [() => httpBundle(url, null as never), "options: found null"],
    "onnxruntimeNode(null)": [() => onnxruntimeNode(null as never), "options: found null"],
    "onnxruntimeWeb()": [() => (onnxruntimeWeb as () => unknown)(), "options: found undefined"],
};

describe("sources and backends", () => {
    it.each(Object.entries(wrong))("name the wrong argument of %s", (_call, [run, words]) => {
        expect(run).toThrow(RequestError);
        expect(run).toThrow(words);
    });
});
