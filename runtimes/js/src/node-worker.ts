/** The script of a worker of Node. `nodeWorker` starts it. */

import { parentPort } from "node:worker_threads";

import { onnxruntimeNode } from "./backends/onnxruntime-node.js";
import { Model } from "./model.js";
import { nodeSourceFrom } from "./sources/node-sources.js";
import { Host } from "./worker/host.js";
import type { Request } from "./worker/messages.js";

const caller = parentPort;
if (caller) {
    const host = new Host({
        send: (reply) => {
            caller.postMessage(reply);
        },
        source: nodeSourceFrom,
        backend: (description) => onnxruntimeNode(description as { readonly threads?: number | undefined }),
        open: (source, options) => Model.open(source, options),
    });
    caller.on("message", (request: Request) => {
        host.receive(request);
    });
}
