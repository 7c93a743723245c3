/** The script of a worker of browsers. `webWorker` starts it. */

import { onnxruntimeWeb, type WebOptions } from "./backends/onnxruntime-web.js";
import { Model } from "./model.js";
import { webSourceFrom } from "./sources/web-sources.js";
import { Host } from "./worker/host.js";
import type { Reply, Request } from "./worker/messages.js";

/** The part of a worker's global scope that this script uses. */
interface Scope {
    postMessage(message: Reply): void;
    addEventListener(type: "message", listener: (event: MessageEvent<Request>) => void): void;
}

const scope = globalThis as unknown as Scope;
const host = new Host({
    send: (reply) => {
        scope.postMessage(reply);
    },
    source: webSourceFrom,
    backend: (description) => onnxruntimeWeb(description as unknown as WebOptions),
    open: (source, options) => Model.open(source, options),
});
scope.addEventListener("message", (event) => {
    host.receive(event.data);
});
