/** The driver with what it needs in a browser. */

export * from "./index.js";
export { onnxruntimeWeb } from "./backends/onnxruntime-web.js";
export { fileHandles } from "./sources/file-handles.js";
export { httpBundle } from "./sources/http-bundle.js";
export { webWorker } from "./worker/web-port.js";
