/**
 * Bundle the programs of tests and benchmarks into .build: those for Node as NAME.mjs, those for browsers in
 * .build/browser.
 */

import { cp, mkdir } from "node:fs/promises";

import { build } from "esbuild";

const shared = { bundle: true, format: "esm", target: "es2022", logLevel: "warning" };

await build({
    ...shared,
    platform: "node",
    entryPoints: [
        ...["node", "tokenize", "render"].map((name) => `tests/conformance/${name}.ts`),
        ...["run", "records"].map((name) => `tests/browser/${name}.ts`),
        "tests/page/screenshots.ts",
        ...["contender", "continue", "browser"].map((name) => `bench/${name}.ts`),
    ],
    packages: "external",
    outdir: ".build",
    entryNames: "[name]",
    outExtension: { ".js": ".mjs" },
});
await build({
    ...shared,
    platform: "browser",
    entryPoints: [
        ...["conformance-page", "records-page"].map((name) => `tests/browser/${name}.ts`),
        "bench/browser-page.ts",
        "src/web-worker.ts",
    ],
    outdir: ".build/browser",
    entryNames: "[name]",
    minify: true,
});
await mkdir(".build/browser", { recursive: true });
for (const name of ["conformance.html", "records.html"]) await cp(`tests/browser/${name}`, `.build/browser/${name}`);
await cp("bench/bench.html", ".build/browser/bench.html");
