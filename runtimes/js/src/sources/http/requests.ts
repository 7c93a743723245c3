/** Requests to the server of a bundle: addresses, answers, repeated attempts, and ranges of files. */

import { BundleError } from "../../errors.js";
import { allocate, checkPlainName } from "../folder.js";
import { RequestQueue } from "./request-queue.js";
import { linkSignals, pause } from "./signals.js";

export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** The numbers of SourceStats that grow. */
export interface Counters {
    networkBytes: number;
    networkRequests: number;
    networkRecords: number;
    cachedRecords: number;
}

export interface RequestsOptions {
    readonly base: URL;
    readonly headers: Readonly<Record<string, string>>;
    readonly fetch: Fetch;
    readonly concurrency: number;
    readonly counters: Counters;
}

export interface AnswerOptions {
    readonly signal?: AbortSignal | undefined;
    readonly cache: RequestCache;
    /** The range of a request, as in the header: "0-99" or "100-". */
    readonly range?: string | undefined;
    /** The range is wanted only of the version of the file that had this strong ETag. */
    readonly ifRange?: string | undefined;
    readonly background?: boolean | undefined;
}

/** The beginning of an answer with status 200 or 206. */
export interface Answer {
    readonly status: number;
    /** ETag or, without one, Last-Modified; "" if the server or CORS hides both. */
    readonly version: string;
    /** Bytes that Content-Length promises of a body that is not compressed; undefined: unknown. */
    readonly length: number | undefined;
    /** Content-Encoding; "" if the body is not compressed, or CORS hides that it is. */
    readonly encoding: string;
    /** Content-Range; undefined if there is none, or CORS hides it. */
    readonly range: { readonly first: number; readonly last: number; readonly total: number } | undefined;
    /** Call `use` with each part of the body. If `use` throws, the rest is not downloaded. */
    body(use: (part: Uint8Array) => void): Promise<void>;
    cancel(): void;
}

/** A failure of the connection or of the server that may be over at the next attempt. */
export class Interruption extends Error {}

const pauses = [250, 1000]; // milliseconds before the second and the third attempt
const patience = 60_000; // milliseconds without any data, after which the connection counts as cut

export class Requests {
    private readonly queue: RequestQueue;
    /** The versions of the files of which ranges were read. */
    private readonly versions = new Map<string, string>();

    constructor(private readonly options: RequestsOptions) {
        this.queue = new RequestQueue(options.concurrency);
    }

    get where(): string {
        return this.options.base.href;
    }

    /** Return the address of a file. @throws BundleError The name is not plain. */
    address(name: string): string {
        checkPlainName(name, this.where);
        const url = new URL(this.options.base);
        try {
            url.pathname += encodeURIComponent(name);
        } catch (error) {
            throw new BundleError(`${this.where}: ${JSON.stringify(name)} is no Unicode text`, { cause: error });
        }
        return url.href;
    }

    /** Run attempts until one is not interrupted. @throws BundleError Three attempts were interrupted. */
    async attempts<T>(name: string, signal: AbortSignal | undefined, attempt: () => Promise<T>): Promise<T> {
        for (let number = 0; ; number++) {
            signal?.throwIfAborted();
            try {
                return await attempt();
            } catch (error) {
                signal?.throwIfAborted();
                if (!(error instanceof Interruption)) throw error;
                const milliseconds = pauses[number];
                if (milliseconds === undefined) {
                    throw new BundleError(
                        `${this.address(name)}: cannot be read in ${number + 1} attempts (${error.message}); check ` +
                            // Chromium does not say why, and refuses each compressed answer to a range.
                            "the network, the address and the server (also CORS, and compression of this file)",
                        { cause: error },
                    );
                }
                await pause(milliseconds, signal);
            }
        }
    }

    /**
     * Send one request, and return its answer when `use` has taken what it needs.
     *
     * @throws BundleError The status is neither 200 nor 206. @throws Interruption Another attempt may succeed.
     */
    async get<T>(name: string, options: AnswerOptions, use: (answer: Answer) => Promise<T>): Promise<T> {
        const address = this.address(name);
        const linked = linkSignals(options.signal);
        const stalled = new Interruption(`no data for ${patience / 1000} s`);
        const stall = (): void => {
            linked.abort(stalled);
        };
        let timer = setTimeout(stall, patience);
        const onData = (bytes: number): void => {
            this.options.counters.networkBytes += bytes;
            clearTimeout(timer);
            timer = setTimeout(stall, patience);
        };
        try {
            const response = await connection(linked.signal, () => this.send(address, options, linked.signal));
            if (response.status !== 200 && response.status !== 206) {
                linked.abort(new Interruption("not needed"));
                throw statusError(address, response, options.range);
            }
            return await use(readAnswer(response, linked, onData));
        } finally {
            clearTimeout(timer);
            linked.release();
        }
    }

    /**
     * Return `length` bytes of a file from `offset` on, and whether the file has another ETag or Last-Modified than at
     * its first range.
     *
     * @throws BundleError
     */
    async range(
        file: { readonly name: string; readonly size: number },
        offset: number,
        length: number,
        options: { readonly signal?: AbortSignal | undefined; readonly background?: boolean | undefined },
    ): Promise<{ bytes: Uint8Array; changed: boolean }> {
        const background = options.background === true;
        const range = `${offset}-${offset + length - 1}`;
        return this.attempts(file.name, options.signal, () =>
            this.queue.run(background, options.signal, () => {
                this.options.counters.networkRequests++;
                // Chrome lets the ranges of one address wait for each other if it may store them.
                return this.get(file.name, { ...options, range, cache: "no-store" }, async (answer) => {
                    this.checkRange(file, offset, length, answer);
                    const bytes = await readLength(answer, length, this.address(file.name));
                    return { bytes, changed: this.isChanged(file.name, answer.version) };
                });
            }),
        );
    }

    private async send(address: string, options: AnswerOptions, signal: AbortSignal): Promise<Response> {
        const headers = new Headers(this.options.headers);
        if (options.range !== undefined) headers.set("Range", `bytes=${options.range}`);
        if (options.ifRange !== undefined) headers.set("If-Range", options.ifRange);
        const priority = options.background === true ? "low" : "auto";
        return this.options.fetch(address, { headers, signal, cache: options.cache, priority });
    }

    private checkRange(
        file: { readonly name: string; readonly size: number },
        offset: number,
        length: number,
        answer: Answer,
    ): void {
        const address = this.address(file.name);
        if (answer.encoding !== "") {
            answer.cancel();
            throw new BundleError(
                `${address}: the server compresses the file (Content-Encoding ${answer.encoding}), but a record is a range ` +
                    "of the file as it is stored; turn compression off for the files of the bundle",
            );
        }
        if (answer.status === 200) {
            answer.cancel();
            throw new BundleError(
                `${address}: the server ignores the header Range and sends the whole file (status 200, expected 206); ` +
                    "use a server with range requests",
            );
        }
        if (answer.range === undefined) return;
        const { first, last, total } = answer.range;
        if (total !== file.size) {
            answer.cancel();
            throw otherSize(address, total, file.size);
        }
        if (first !== offset || last !== offset + length - 1) {
            answer.cancel();
            throw new BundleError(
                `${address}: the server sent bytes ${first} to ${last}, expected ${offset} to ${offset + length - 1}`,
            );
        }
    }

    private isChanged(name: string, version: string): boolean {
        const known = this.versions.get(name);
        if (known === undefined) this.versions.set(name, version);
        return known !== undefined && known !== version;
    }
}

/** Return the error of a file that has another size on the server. */
export function otherSize(address: string, found: number, expected: number): BundleError {
    return new BundleError(
        `${address}: has ${found} bytes on the server, expected ${expected}: the file on the server is another version ` +
            "than the manifest; open the bundle again, or upload it again",
    );
}

/** Run a step of a request. A failure that the caller's signal did not cause is an interruption. */
async function connection<T>(signal: AbortSignal, step: () => Promise<T>): Promise<T> {
    try {
        return await step();
    } catch (error) {
        signal.throwIfAborted();
        const cause = error instanceof Error && error.cause instanceof Error ? `: ${error.cause.message}` : "";
        throw new Interruption(`${error instanceof Error ? error.message : String(error)}${cause}`, { cause: error });
    }
}

function statusError(address: string, response: Response, range: string | undefined): Error {
    const { status } = response;
    if (status >= 500 || status === 408 || status === 429) return new Interruption(`status ${status}`);
    if (status === 404 || status === 410) {
        return new BundleError(`${address}: the server has no such file (status ${status}); check the address`);
    }
    if (status === 416) {
        const total = /\/(\d+)$/.exec(response.headers.get("content-range") ?? "")?.[1];
        return new BundleError(
            `${address}: the server has no bytes ${range ?? ""} (status 416${total === undefined ? "" : `, it has ${total} bytes`}): ` +
                "the file on the server is another version than the manifest; open the bundle again, or upload it again",
        );
    }
    return new BundleError(`${address}: the server answers with status ${status}, expected 200 or 206`);
}

function readAnswer(
    response: Response,
    linked: { readonly signal: AbortSignal; abort(reason: unknown): void },
    onData: (bytes: number) => void,
): Answer {
    const { headers } = response;
    const range = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(headers.get("content-range") ?? "");
    const encoding = (headers.get("content-encoding") ?? "").replace(/^identity$/i, "");
    // CORS hides Content-Encoding, so the body of another origin may be compressed.
    const isPlain = encoding === "" && response.type !== "cors";
    const length = isPlain ? headers.get("content-length") : null;
    const cancel = (): void => {
        linked.abort(new Interruption("not needed"));
    };
    return {
        status: response.status,
        version: (headers.get("etag") ?? headers.get("last-modified") ?? "").replace(/^W\//, ""),
        length: length !== null && /^\d{1,15}$/.test(length) ? Number(length) : undefined,
        encoding,
        range:
            range === null ? undefined : { first: Number(range[1]), last: Number(range[2]), total: Number(range[3]) },
        async body(use) {
            const reader = response.body?.getReader();
            while (reader !== undefined) {
                const { done, value } = await connection(linked.signal, () => reader.read());
                if (done) return;
                onData(value.length);
                try {
                    use(value);
                } catch (error) {
                    cancel();
                    throw error;
                }
            }
        },
        cancel,
    };
}

async function readLength(answer: Answer, length: number, address: string): Promise<Uint8Array> {
    const bytes = allocate(length, address);
    let done = 0;
    await answer.body((part) => {
        if (part.length > length - done) {
            throw new BundleError(`${address}: the server sent more than the ${length} bytes of the range`);
        }
        bytes.set(part, done);
        done += part.length;
    });
    if (done < length) throw new Interruption(`the answer ended after ${done} of ${length} bytes`);
    return bytes;
}
