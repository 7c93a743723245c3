/**
 * Keeps the page's own files, so that the page works offline. The files of the bundle are not kept here: the driver
 * keeps what it needs in the browser's private file system.
 */

/** The part of a service worker's global scope that this script uses. */
interface Scope {
    readonly registration: { readonly scope: string };
    readonly clients: { claim(): Promise<void> };
    skipWaiting(): Promise<void>;
    addEventListener(type: "install" | "activate", listener: (event: LifeEvent) => void): void;
    addEventListener(type: "fetch", listener: (event: RequestEvent) => void): void;
}

interface LifeEvent {
    waitUntil(work: Promise<unknown>): void;
}

interface RequestEvent {
    readonly request: Request;
    respondWith(response: Promise<Response>): void;
}

/** The files of this build that the first visit keeps at once, and the folder of those that are kept when used. */
declare const FILES: readonly string[];
declare const ONNXRUNTIME: string;

const CACHE = "molkv-page";
const PATIENCE_MS = 4000; // for the newest page from a slow server
const scope = self as unknown as Scope;
const root = scope.registration.scope;
const kept = new Set(FILES.map(address));

scope.addEventListener("install", (event) => {
    event.waitUntil(install());
});

scope.addEventListener("activate", (event) => {
    event.waitUntil(activate());
});

scope.addEventListener("fetch", (event) => {
    const { request } = event;
    const url = request.url.split(/[?#]/)[0]!;
    if (request.method !== "GET" || request.headers.has("range")) return;
    if (url === root || url === address("index.html")) event.respondWith(newest(request));
    else if (kept.has(url) || url.startsWith(address("assets/"))) event.respondWith(first(request));
});

async function install(): Promise<void> {
    const cache = await openCache();
    await cache.addAll([root, ...kept].map((url) => new Request(url, { cache: "no-cache" })));
    await scope.skipWaiting();
}

/** Remove the files of older builds. All names in assets/ change with the content, so no name has two contents. */
async function activate(): Promise<void> {
    const cache = await openCache();
    for (const request of await cache.keys()) {
        const { url } = request;
        if (url !== root && !kept.has(url) && !url.startsWith(address(ONNXRUNTIME))) await cache.delete(request);
    }
    await scope.clients.claim();
}

/** Answer with the server's page; with the kept one if the server fails or is slow. */
async function newest(request: Request): Promise<Response> {
    const cache = await openCache();
    try {
        const response = await fetch(request, { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE_MS) });
        if (response.type === "opaqueredirect") return response;
        if (!response.ok) throw new Error(`status ${response.status}`);
        await forgetOtherIsolation(cache, response);
        await keep(cache, root, response);
        return response;
    } catch (error) {
        const old = await cache.match(root);
        if (old) return old;
        throw error;
    }
}

/** A browser refuses workers whose headers of isolation differ from the page's. So files of other headers are removed. */
async function forgetOtherIsolation(cache: Cache, response: Response): Promise<void> {
    const header = "cross-origin-embedder-policy";
    const old = await cache.match(root);
    if (!old || old.headers.get(header) === response.headers.get(header)) return;
    for (const request of await cache.keys()) await cache.delete(request);
}

/** Keep an answer. If there is no room, the next visit downloads it again. */
async function keep(cache: Cache, url: string, response: Response): Promise<void> {
    await cache.put(url, response.clone()).catch(() => undefined);
}

/** Answer with the kept file; if there is none, with the server's, and keep it. */
async function first(request: Request): Promise<Response> {
    const cache = await openCache();
    const old = await cache.match(request.url);
    if (old) return old;
    const response = await fetch(request);
    if (response.status === 200) await keep(cache, request.url, response);
    return response;
}

/** Pages in several folders of one host share the host's caches, so the name of the cache has the folder. */
function openCache(): Promise<Cache> {
    return caches.open(`${CACHE} ${root}`);
}

function address(relative: string): string {
    return new URL(relative, root).href;
}
