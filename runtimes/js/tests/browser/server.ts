/** A static server for tests and benchmarks: it knows ranges, and it can be slow or fail. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join, normalize } from "node:path";
import { Transform } from "node:stream";

const TYPES: Readonly<Record<string, string>> = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
};

/** How a server behaves. The fields may change while it runs. */
export interface Behaviour {
    /** Milliseconds before each answer. */
    delay?: number;
    /** The speed of each answer; default: unlimited. Answers that have begun slowly follow a change. */
    bytesPerSecond?: number;
    /** Whether a page is cross-origin isolated, so that it can use threads. */
    isolated?: boolean;
    /** Whether the server answers 200 with the whole file in place of a range. */
    ignoresRange?: boolean;
    /** Answer requests whose path has this text with this status. */
    refuses?: { readonly path: string; readonly status: number };
    /** Cut connections to paths with this text after half of the bytes. */
    cuts?: { readonly path: string };
}

export interface Request {
    readonly path: string;
    readonly range: string | undefined;
    /** Bytes of the answer's body. */
    readonly bytes: number;
}

/** A running server. */
export interface TestServer {
    readonly url: string;
    readonly behaviour: Behaviour;
    /** The requests since the list was emptied. */
    readonly requests: Request[];
    close(): Promise<void>;
}

/** Serve folders: a path that begins with a key of `folders` is a file below the folder. Other paths are 404. */
export async function serve(folders: Readonly<Record<string, string>>, behaviour: Behaviour = {}): Promise<TestServer> {
    const requests: Request[] = [];
    const server = createServer((request, response) => {
        void answer(request, response, folders, behaviour, requests).catch(() => response.destroy());
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    return {
        url: `http://127.0.0.1:${port}/`,
        behaviour,
        requests,
        close: async () => {
            server.closeAllConnections();
            await new Promise((resolve) => server.close(resolve));
        },
    };
}

/** Answer a request. Also used with HTTP/2 by the benchmark. */
export async function answer(
    request: IncomingMessage,
    response: ServerResponse,
    folders: Readonly<Record<string, string>>,
    behaviour: Behaviour,
    requests: Request[],
): Promise<void> {
    if (behaviour.delay) {
        await new Promise((resolve) => setTimeout(resolve, behaviour.delay));
    }
    const path = normalize(decodeURIComponent(new URL(request.url ?? "/", "http://localhost").pathname));
    const prefix = Object.keys(folders).find((key) => path.startsWith(key));
    const file = prefix === undefined ? "" : join(folders[prefix]!, path.slice(prefix.length) || "index.html");
    const found = file ? await stat(file).catch(() => undefined) : undefined;
    const refused = behaviour.refuses && path.includes(behaviour.refuses.path) ? behaviour.refuses.status : 0;
    if (!found?.isFile() || refused) {
        requests.push({ path, range: request.headers.range, bytes: 0 });
        response.writeHead(refused || 404).end();
        return;
    }
    const range = behaviour.ignoresRange ? undefined : /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
    const start = range ? Number(range[1]) : 0;
    const end = range?.[2] ? Math.min(Number(range[2]), found.size - 1) : found.size - 1;
    requests.push({ path, range: request.headers.range, bytes: end - start + 1 });
    response.writeHead(range ? 206 : 200, {
        "content-type": TYPES[extname(file)] ?? "application/octet-stream",
        "content-length": end - start + 1,
        "accept-ranges": "bytes",
        "cache-control": "no-cache",
        etag: `"${found.mtimeMs.toString(36)}-${found.size.toString(36)}"`,
        ...(range && { "content-range": `bytes ${start}-${end}/${found.size}` }),
        ...(behaviour.isolated && {
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-embedder-policy": "require-corp",
        }),
    });
    const cut = behaviour.cuts && path.includes(behaviour.cuts.path);
    const last = cut ? start + Math.floor((end - start) / 2) : end;
    if (request.method === "HEAD" || end < start) {
        response.end();
        return;
    }
    const content = createReadStream(file, { start, end: last });
    const sent = behaviour.bytesPerSecond ? content.pipe(slowed(behaviour)) : content;
    sent.pipe(response, { end: !cut });
    sent.on("end", () => {
        if (cut) {
            response.destroy();
        }
    });
}

/** Return a stream that passes bytes on at the speed of a behaviour, which may change meanwhile. */
function slowed(behaviour: Behaviour): Transform {
    return new Transform({
        transform(part: Buffer, _encoding, done) {
            const seconds = behaviour.bytesPerSecond ? part.length / behaviour.bytesPerSecond : 0;
            setTimeout(() => {
                done(null, part);
            }, 1000 * seconds);
        },
    });
}
