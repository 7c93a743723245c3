/**
 * Build the web page into .build/page: a folder that, with a bundle in bundle/, is a static site.
 *
 * ONNX Runtime is in files of its own, which the driver loads when it needs them: the page does not wait for both
 * providers.
 */

import { cp, mkdir, readFile, readdir, rm, stat, writeFile } from "node:fs/promises";

import { build } from "esbuild";

const OUT = ".build/page";
const ORT = "node_modules/onnxruntime-web";
const PROVIDERS = { wasm: "ort-wasm-simd-threaded", webgpu: "ort-wasm-simd-threaded.asyncify" };

const { version } = JSON.parse(await readFile(`${ORT}/package.json`, "utf8"));
const onnxruntime = `assets/onnxruntime-${version}/`;
await rm(OUT, { recursive: true, force: true });
await mkdir(`${OUT}/${onnxruntime}`, { recursive: true });

const shared = {
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    metafile: true,
    logLevel: "warning",
    legalComments: "none", // LICENSES.txt has the licences
    outdir: OUT,
};
const programs = await build({
    ...shared,
    entryPoints: { page: "page/page.ts", worker: "src/web-worker.ts", style: "page/style.css" },
    splitting: true,
    entryNames: "assets/[name]-[hash]",
    chunkNames: "assets/[name]-[hash]",
    // The builds of ONNX Runtime that load WebAssembly from files.
    conditions: ["onnxruntime-web-use-extern-wasm"],
    define: { ONNXRUNTIME: JSON.stringify({ folder: onnxruntime, files: await providerFiles() }) },
});
for (const name of Object.values(PROVIDERS)) {
    for (const extension of ["mjs", "wasm"])
        await cp(`${ORT}/dist/${name}.${extension}`, `${OUT}/${onnxruntime}${name}.${extension}`);
}
await cp("page/icon.svg", `${OUT}/icon.svg`);
await cp("page/README.md", `${OUT}/README.md`);
await writeFile(`${OUT}/LICENSES.txt`, await licences(Object.keys(programs.metafile.inputs)));
await writeFile(`${OUT}/index.html`, await page());
const assets = (await readdir(`${OUT}/assets`, { withFileTypes: true })).filter((entry) => entry.isFile());
await build({
    ...shared,
    entryPoints: { "service-worker": "page/service-worker.ts" },
    define: {
        FILES: JSON.stringify(["icon.svg", "LICENSES.txt", ...assets.map(({ name }) => `assets/${name}`)]),
        ONNXRUNTIME: JSON.stringify(onnxruntime),
    },
});

/** Return the name and the size of each provider's WebAssembly. */
async function providerFiles() {
    const entries = Object.entries(PROVIDERS).map(async ([provider, name]) => {
        const { size } = await stat(`${ORT}/dist/${name}.wasm`);
        return [provider, { name: `${name}.wasm`, bytes: size }];
    });
    return Object.fromEntries(await Promise.all(entries));
}

/** Return the address of a built entry point. */
function built(source) {
    const [path] = Object.entries(programs.metafile.outputs).find(([, { entryPoint }]) => entryPoint === source);
    return path.slice(OUT.length + 1);
}

async function page() {
    const replacements = {
        'data-worker=""': `data-worker="${built("src/web-worker.ts")}"`,
        'href="style.css"': `href="${built("page/style.css")}"`,
        'src="page.js"': `src="${built("page/page.ts")}"`,
    };
    let text = await readFile("page/index.html", "utf8");
    for (const [from, to] of Object.entries(replacements)) {
        if (!text.includes(from)) throw new Error(`page/index.html: found no ${from}`);
        text = text.replace(from, to);
    }
    return text;
}

/** Return the licences of this package and of all packages that are in the page. */
async function licences(inputs) {
    const names = inputs.map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]).filter(Boolean);
    const texts = [["molkv-runtime", await readFile("LICENSE", "utf8")]];
    for (const name of [...new Set([...names, "onnxruntime-web"])].sort()) {
        const { version, license } = JSON.parse(await readFile(`node_modules/${name}/package.json`, "utf8"));
        texts.push([`${name} ${version} (${license})`, await licence(name)]);
    }
    return texts.map(([title, text]) => `${title}\n${"=".repeat(title.length)}\n\n${text.trim()}\n`).join("\n\n");
}

async function licence(name) {
    // The packages of ONNX Runtime have no file with their licence.
    if (name.startsWith("onnxruntime-")) return await readFile("page/onnxruntime-license.txt", "utf8");
    const file = (await readdir(`node_modules/${name}`)).find((file) => /^licen[cs]e/i.test(file));
    if (!file) throw new Error(`node_modules/${name}: has no file with its licence`);
    return await readFile(`node_modules/${name}/${file}`, "utf8");
}
