/** The choice of the state of a model's experts. */

import type { GraphSession } from "../backend.js";
import type { ModelConfig } from "../format/manifest.js";
import type { RecordDecoder } from "../format/record-decoder.js";
import type { Bundle } from "./bundle.js";
import type { ExpertState } from "./experts.js";
import { ExpertWindow, windowBytes } from "./molkv.js";
import { presentBytes, PresentExperts } from "./present.js";
import type { WindowConfig } from "./window-rows.js";

/** What the experts of sequences need. */
export interface ExpertOptions {
    readonly bundle: Bundle;
    readonly decoder: RecordDecoder;
    readonly graph: GraphSession;
    readonly batchSize: number;
    /** The most tokens of a sequence. */
    readonly maxLength: number;
}

/** Whether positions attend to the experts of earlier positions, as in MoLKV. */
function hasWindow(config: ModelConfig): config is WindowConfig {
    return config.expertAttention !== undefined;
}

/** Return the experts of new sequences. */
export function createExperts({ bundle, decoder, graph, batchSize, maxLength }: ExpertOptions): ExpertState {
    const { config } = bundle;
    if (!hasWindow(config)) return new PresentExperts(config, decoder, batchSize);
    return new ExpertWindow(config, bundle.graph.windowDtype, decoder, graph, batchSize, maxLength);
}

/** Return the bytes of the experts of one sequence. */
export function expertBytes({ config, graph }: Bundle, maxLength: number): number {
    return hasWindow(config) ? windowBytes(config, graph.windowDtype, maxLength) : presentBytes(config);
}
