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
        "tests/browser/run.ts",
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
    entryPoints: ["tests/browser/conformance-page.ts", "bench/browser-page.ts", "src/web-worker.ts"],
    outdir: ".build/browser",
    entryNames: "[name]",
    minify: true,
});
await mkdir(".build/browser", { recursive: true });
await cp("tests/browser/conformance.html", ".build/browser/conformance.html");
await cp("bench/bench.html", ".build/browser/bench.html");
