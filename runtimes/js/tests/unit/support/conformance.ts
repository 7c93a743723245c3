/** The files of runtimes/conformance, and its patches. */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../../../../conformance", import.meta.url));

/** A change of a file, see runtimes/conformance/README.md. */
export interface Patch {
    readonly file?: string;
    readonly offset?: number;
    readonly delete?: number;
    readonly insert?: string;
    readonly remove?: boolean;
    readonly from?: string;
}

/** A case of the kinds "damage" and "session-refused". */
export interface PatchedCase {
    readonly name: string;
    readonly kind: string;
    readonly bundle: string;
    readonly session?: string;
    readonly patches: readonly Patch[];
    readonly error: string;
}

/** The names of all bundles. */
export const bundleNames: readonly string[] = readdirSync(join(folder, "bundles")).sort();

/** The path of a file of a bundle. */
export function bundleFile(bundle: string, file: string): string {
    return join(folder, "bundles", bundle, file);
}

/** Return the content of a file of a bundle. */
export function readBundleFile(bundle: string, file: string): Uint8Array {
    return new Uint8Array(readFileSync(bundleFile(bundle, file)));
}

/** Return the content of a saved session. */
export function readSession(name: string): Uint8Array {
    return new Uint8Array(readFileSync(join(folder, "sessions", name)));
}

/** Return the cases of a kind. */
export function patchedCases(kind: "damage" | "session-refused"): PatchedCase[] {
    const { cases } = JSON.parse(readFileSync(join(folder, "cases.json"), "utf8")) as { cases: PatchedCase[] };
    return cases.filter((one) => one.kind === kind);
}

/** Return the content of a file of a bundle after the patches of this file; undefined: a patch removes it. */
export function patchedBundleFile(bundle: string, file: string, patches: readonly Patch[]): Uint8Array | undefined {
    const own = patches.filter((patch) => patch.file === file);
    let bytes: Uint8Array | undefined = readBundleFile(bundle, file);
    for (const patch of own) {
        if (patch.remove === true) bytes = undefined;
        else if (patch.from !== undefined) bytes = readBundleFile(patch.from, file);
        else if (bytes !== undefined) bytes = patched(bytes, [patch]);
    }
    return bytes;
}

/** Return the bytes of a manifest with the right hash. */
export function hashed(text: string): Uint8Array {
    const zeroed = text.replace(/("sha256": ")[0-9a-f]{64}(",?\s*\}\s*)$/, `$1${"0".repeat(64)}$2`);
    const digest = createHash("sha256").update(zeroed).digest("hex");
    return new TextEncoder().encode(zeroed.replace(/0{64}(?=",?\s*\}\s*$)/, digest));
}

/** Return bytes after patches with `offset`. */
export function patched(bytes: Uint8Array, patches: readonly Patch[]): Uint8Array {
    let content = Buffer.from(bytes);
    for (const patch of patches) {
        const offset = patch.offset ?? 0;
        const rest = content.subarray(offset + (patch.delete ?? 0));
        content = Buffer.concat([content.subarray(0, offset), Buffer.from(patch.insert ?? "", "hex"), rest]);
    }
    return new Uint8Array(content);
}
