/** The list of the families. No other file asks which family a model is of. */

import type { GraphSession } from "../backend.js";
import type { ModelConfig } from "../format/manifest.js";
import type { RecordDecoder } from "../format/record-decoder.js";
import type { Bundle } from "./bundle.js";
import type { ExpertState } from "./experts.js";
import { PresentExperts } from "./mole.js";
import { ExpertWindow, windowBytes } from "./molkv.js";

/** What the state of a family needs. */
export interface ExpertOptions {
    readonly bundle: Bundle;
    readonly decoder: RecordDecoder;
    readonly graph: GraphSession;
    readonly batchSize: number;
    /** The most tokens of a sequence. */
    readonly maxLength: number;
}

interface Family {
    /** Return a new state. */
    experts(options: ExpertOptions): ExpertState;
    /** Return the bytes of that state for one sequence. */
    expertBytes(bundle: Bundle, maxLength: number): number;
}

const PRESENT: Family = {
    experts: ({ bundle, decoder, batchSize }) => new PresentExperts(bundle.config, decoder, batchSize),
    expertBytes: ({ config }) => 4 * config.expertLayers.length * config.numExperts * config.hiddenSize,
};

const WINDOW: Family = {
    experts: ({ bundle, decoder, graph, batchSize, maxLength }) =>
        new ExpertWindow(bundle.config, bundle.graph.windowDtype, decoder, graph, batchSize, maxLength),
    expertBytes: ({ config, graph }, maxLength) => windowBytes(config, graph.windowDtype, maxLength),
};

const FAMILIES: Readonly<Record<ModelConfig["modelType"], Family>> = { molkv: WINDOW, mole: PRESENT };

function familyOf({ modelType, expertLayers }: ModelConfig): Family {
    // A model without experts is a model of any family.
    return expertLayers.length === 0 ? PRESENT : FAMILIES[modelType];
}

/** Return the experts of new sequences. */
export function createExperts(options: ExpertOptions): ExpertState {
    return familyOf(options.bundle.config).experts(options);
}

/** Return the bytes of the experts of one sequence. */
export function expertBytes(bundle: Bundle, maxLength: number): number {
    return familyOf(bundle.config).expertBytes(bundle, maxLength);
}
