/** Print the sizes of the parts of the driver, minified and compressed with gzip, and the size of the npm package. */

import { execFileSync } from "node:child_process";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

const TOKENIZER = "src/runtime/tokenizer/tokenizer.ts";
const CHAT_TEMPLATE = "src/runtime/chat-template/chat-template.ts";
const PARTS = {
    core: { entries: ["src/index.ts"], without: [TOKENIZER, CHAT_TEMPLATE] },
    tokenizer: { entries: [TOKENIZER] },
    "chat templates": { entries: [CHAT_TEMPLATE] },
    "web sources": { entries: ["src/sources/http-bundle.ts", "src/sources/file-handles.ts"] },
    "web backends": { entries: ["src/backends/onnxruntime-web.ts"] },
    "worker, caller's side": { entries: ["src/worker/client.ts", "src/worker/web-port.ts"] },
    "worker, host": { entries: ["src/worker/host.ts"] },
    "all for the web": { entries: ["src/web.ts"] },
};
/** The inputs of the core that are listed, largest first. */
const LISTED = process.argv.includes("--inputs") ? 60 : 0;

for (const [name, part] of Object.entries(PARTS)) {
    const { size, inputs } = await measure(part);
    console.log(`${kilobytes(size)}  ${name}`);
    if (name !== "core") continue;
    for (const [path, { bytesInOutput }] of inputs.slice(0, LISTED)) console.log(`    ${bytesInOutput}  ${path}`);
}
const [packed] = JSON.parse(
    execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { encoding: "utf8" }),
);
console.log(
    `${kilobytes(packed.size)}  npm package, ${packed.entryCount} files, unpacked ${kilobytes(packed.unpackedSize).trim()}`,
);

/** Return the compressed size of a program that exports all of the entries, without the files `without`. */
async function measure({ entries, without = [] }) {
    const { outputFiles, metafile } = await build({
        stdin: { contents: entries.map((path) => `export * from "./${path}";`).join("\n"), resolveDir: "." },
        bundle: true,
        format: "esm",
        target: "es2022",
        minify: true,
        metafile: true,
        write: false,
        external: ["onnxruntime-*"],
        plugins: [{ name: "without", setup: (building) => leaveOut(building, without) }],
    });
    const [{ inputs }] = Object.values(metafile.outputs);
    const largest = Object.entries(inputs).sort(([, a], [, b]) => b.bytesInOutput - a.bytesInOutput);
    return { size: gzipSync(outputFiles[0].contents, { level: 9 }).length, inputs: largest };
}

function leaveOut(building, paths) {
    building.onResolve({ filter: /\.js$/ }, ({ path }) => {
        const file = path.replace(/^(\.\.?\/)+/, "").replace(/\.js$/, ".ts");
        return paths.some((each) => each.endsWith(`/${file}`)) ? { path, external: true } : undefined;
    });
}

function kilobytes(size) {
    return `${(size / 1000).toFixed(1).padStart(6)} kB`;
}
