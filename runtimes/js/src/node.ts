/** The driver with what it needs in Node. */

export * from "./index.js";
export { onnxruntimeNode } from "./backends/onnxruntime-node.js";
export { httpBundle } from "./sources/http-bundle.js";
export { nodeFolder } from "./sources/node-folder.js";
export { nodeWorker } from "./worker/node-port.js";
