/**
 * Test the npm package as a user gets it: node scripts/test-package.mjs, after `npm run build`.
 *
 * The package is packed and unpacked in a folder outside of the checkout, beside the peers. There, a program in plain
 * JavaScript runs a model of the conformance suite, programs in TypeScript compile, and a program for browsers is bundled.
 */

import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { build } from "esbuild";

const PEERS = ["onnxruntime-node", "onnxruntime-web", "onnxruntime-common"];
const BUNDLE = resolve("../conformance/bundles/molkv");

const RUN = `
import assert from "node:assert";
import { BundleError, Model, nodeFolder, nodeWorker, onnxruntimeNode } from "molkv-runtime/node";

const bundle = process.argv[2];
for (const worker of [undefined, nodeWorker()]) {
    const model = await Model.open(nodeFolder(bundle), { backend: onnxruntimeNode(), worker });
    const { passed } = await model.selftest();
    assert(passed);
    await model.close();
    await assert.rejects(Model.open(nodeFolder("missing"), { backend: onnxruntimeNode(), worker }), BundleError);
}
`;

const CONSUMER = `
import { Model, type Backend, type Source, type Token } from "molkv-runtime";
import { nodeFolder, nodeWorker, onnxruntimeNode } from "molkv-runtime/node";
import { fileHandles, httpBundle, onnxruntimeWeb, webWorker } from "molkv-runtime/web";

export const sources: Source[] = [nodeFolder("a"), httpBundle("/a/", { cache: "opfs" }), fileHandles([])];
export const backends: Backend[] = [onnxruntimeNode({ threads: 1 }), onnxruntimeWeb({ provider: "wasm" })];
export const workers = [nodeWorker(), webWorker()];

export async function run(source: Source, backend: Backend): Promise<Token[]> {
    const model = await Model.open(source, { backend });
    const tokens: Token[] = [];
    for await (const token of model.stream([[1, 2]], { sampling: { seed: 1n } })) tokens.push(token);
    // @ts-expect-error: the type of an option is checked
    void model.encode(5);
    return tokens;
}
`;

const folder = await mkdtemp(join(tmpdir(), "molkv-package-"));
try {
    await unpack();
    await writeFile(join(folder, "run.js"), RUN);
    run(process.execPath, ["run.js", BUNDLE]);
    await checkTypes();
    await bundleForBrowsers();
    console.log("the npm package works");
} finally {
    await rm(folder, { recursive: true });
}

/** Install the package and links to its peers in the folder. */
async function unpack() {
    const packed = ["pack", "--json", "--ignore-scripts", "--pack-destination", folder];
    const [{ filename }] = JSON.parse(execFileSync("npm", packed, { encoding: "utf8" }));
    const installed = join(folder, "node_modules/molkv-runtime");
    await mkdir(installed, { recursive: true });
    run("tar", ["-xzf", filename, "-C", installed, "--strip-components=1"]);
    for (const name of PEERS) await symlink(resolve("node_modules", name), join(folder, "node_modules", name));
    await writeFile(join(folder, "package.json"), '{ "type": "module" }');
}

/** Compile a program with the package's types, which hold no `any`. */
async function checkTypes() {
    const files = await readdir(join(folder, "node_modules/molkv-runtime/dist"), { recursive: true });
    for (const file of files.filter((name) => name.endsWith(".d.ts"))) {
        const text = await readFile(join(folder, "node_modules/molkv-runtime/dist", file), "utf8");
        const code = text.replaceAll(/\/\*[^]*?\*\/|\/\/.*/g, "");
        if (/\bany\b/.test(code)) throw new Error(`${file}: found the type any`);
    }
    await writeFile(join(folder, "consumer.ts"), CONSUMER);
    for (const [module, resolution] of [
        ["esnext", "bundler"],
        ["node16", "node16"],
    ]) {
        const options = ["--strict", "--exactOptionalPropertyTypes", "--noEmit", "--target", "es2022"];
        const given = ["--lib", "es2022,dom,dom.iterable", "--module", module, "--moduleResolution", resolution];
        run(process.execPath, [resolve("node_modules/typescript/bin/tsc"), ...options, ...given, "consumer.ts"]);
    }
}

async function bundleForBrowsers() {
    const { warnings } = await build({
        stdin: {
            contents: 'export { Model, httpBundle, onnxruntimeWeb, webWorker } from "molkv-runtime/web";',
            resolveDir: folder,
        },
        absWorkingDir: folder,
        bundle: true,
        format: "esm",
        platform: "browser",
        write: false,
        preserveSymlinks: true,
    });
    if (warnings.length > 0) throw new Error(`found ${warnings.length} warnings of esbuild: ${warnings[0].text}`);
}

function run(program, args) {
    execFileSync(program, args, { cwd: folder, stdio: "inherit" });
}
