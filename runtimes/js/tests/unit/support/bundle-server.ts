/** A web server of bundles for tests. It can do what bad servers and bad networks do. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { gzipSync } from "node:zlib";

export interface Fault {
    readonly status?: number;
    readonly ignoreRange?: boolean;
    /** Close the connection after this number of bytes of the body. */
    readonly cutAfter?: number;
    readonly etag?: string;
    /** Change each byte of the answer. */
    readonly wrongBytes?: boolean;
    /** The file's size in Content-Range. */
    readonly total?: number;
    readonly delay?: number;
    /** Compress the body. */
    readonly gzip?: boolean;
    /** Send no Content-Length. */
    readonly chunked?: boolean;
    /** Compare If-Range wrongly: always continue. */
    readonly ignoreIfRange?: boolean;
}

export interface ServedRequest {
    readonly name: string;
    readonly range: string | undefined;
    readonly headers: IncomingMessage["headers"];
}

export class BundleServer {
    /** What goes wrong at a request; `count` is the number of requests for this file so far, from 1. */
    fault: (request: ServedRequest, count: number) => Fault | undefined = () => undefined;
    requests: ServedRequest[] = [];
    running = 0;
    mostRunning = 0;
    etag = '"one"';
    private readonly server = createServer((request, response) => void this.answer(request, response));

    constructor(readonly files: Map<string, Uint8Array>) {}

    async start(): Promise<string> {
        await new Promise<void>((resolve) => this.server.listen(0, "127.0.0.1", resolve));
        return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/bundle`;
    }

    async stop(): Promise<void> {
        this.server.closeAllConnections();
        await new Promise((resolve) => this.server.close(resolve));
    }

    /** Return the requests for a file, and forget all. */
    take(name?: string): ServedRequest[] {
        const found = this.requests.filter((request) => name === undefined || request.name === name);
        this.requests = [];
        return found;
    }

    private async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
        const name = decodeURIComponent(request.url!.replace("/bundle/", ""));
        const served = { name, range: request.headers.range, headers: request.headers };
        this.requests.push(served);
        const fault = this.fault(served, this.requests.filter((one) => one.name === name).length) ?? {};
        this.mostRunning = Math.max(this.mostRunning, ++this.running);
        if (fault.delay !== undefined) await new Promise((resolve) => setTimeout(resolve, fault.delay));
        this.send(served, response, fault);
        this.running--;
    }

    private send(request: ServedRequest, response: ServerResponse, fault: Fault): void {
        const content = this.files.get(request.name);
        if (content === undefined || fault.status !== undefined) {
            response.writeHead(fault.status ?? 404).end("an error page");
            return;
        }
        const etag = fault.etag ?? this.etag;
        const ifRange = request.headers["if-range"];
        const isCurrent = ifRange === undefined || ifRange === etag || fault.ignoreIfRange === true;
        const range = fault.ignoreRange === true || !isCurrent ? null : /^bytes=(\d+)-(\d*)$/.exec(request.range ?? "");
        const first = range === null ? 0 : Number(range[1]);
        const last = range?.[2] ? Number(range[2]) : content.length - 1;
        const total = fault.total ?? content.length;
        if (first >= content.length && content.length > 0) {
            response.writeHead(416, { "Content-Range": `bytes */${content.length}` }).end();
            return;
        }
        let body: Uint8Array = content.slice(first, last + 1);
        if (fault.wrongBytes === true) body = body.map((byte) => byte ^ 255);
        if (fault.gzip === true) body = gzipSync(body);
        response.writeHead(range === null ? 200 : 206, {
            ETag: etag,
            ...(fault.gzip === true ? { "Content-Encoding": "gzip" } : {}),
            ...(fault.chunked === true ? {} : { "Content-Length": body.length }),
            ...(range === null ? {} : { "Content-Range": `bytes ${first}-${last}/${total}` }),
        });
        if (fault.cutAfter === undefined) response.end(body);
        else response.write(body.subarray(0, fault.cutAfter), () => setTimeout(() => response.destroy(), 20));
    }
}
