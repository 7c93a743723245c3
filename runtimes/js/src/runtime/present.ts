/** The experts of models whose positions use only the experts of their own token: MoLE, Gemma 4, models without experts. */

import type { HostTensor } from "../backend.js";
import type { ModelConfig } from "../format/manifest.js";
import type { RecordDecoder } from "../format/record-decoder.js";
import type { Part } from "./chunks.js";
import type { ExpertState, Inputs } from "./experts.js";

/** Return the numbers of a token's values in one layer. */
function valueCount({ expertValueShape }: ModelConfig): number {
    return expertValueShape.reduce((product, size) => product * size, 1);
}

/** Return the bytes of the experts of one sequence. */
export function presentBytes(config: ModelConfig): number {
    return 4 * config.expertLayers.length * valueCount(config);
}

/** Keeps nothing between steps, and passes the values of the records to the graph. */
export class PresentExperts implements ExpertState {
    readonly lookback = 0;
    readonly blockLength = 0;
    readonly stepInputs: Inputs;
    readonly #decoder: RecordDecoder;
    readonly #layers: readonly number[];
    /** The shape of a token's values in one layer, and their number. */
    readonly #shape: readonly number[];
    readonly #size: number;
    /** Values of a decode step, [B, ...shape] for each layer. */
    readonly #step: readonly Float32Array[];
    /** Values of a part of a prompt, [T, ...shape] for each layer, with room for the longest part so far. */
    #part: Float32Array[];
    #length = 0;

    constructor(config: ModelConfig, decoder: RecordDecoder, batchSize: number) {
        this.#decoder = decoder;
        this.#layers = config.expertLayers;
        this.#shape = config.expertValueShape;
        this.#size = valueCount(config);
        this.#step = this.#layers.map(() => new Float32Array(batchSize * this.#size));
        this.#part = this.#layers.map(() => new Float32Array(0));
        this.stepInputs = this.#named(this.#step, [batchSize, 1]);
    }

    step(sequence: number, _position: number, record: Uint8Array): void {
        this.#put(this.#step, sequence, record);
    }

    wait(): void {
        // The values of an earlier step or zeros are still there.
    }

    begin(part: Part): void {
        this.#length = part.length;
        const needed = part.length * this.#size;
        this.#part = this.#part.map((values) => (values.length < needed ? new Float32Array(needed) : values));
    }

    add(index: number, record: Uint8Array): void {
        this.#put(this.#part, index, record);
    }

    inputs(): Inputs {
        const values = this.#part.map((all) => all.subarray(0, this.#length * this.#size));
        return this.#named(values, [1, this.#length]);
    }

    finish(): void {
        // Nothing is kept.
    }

    restore(): void {
        // Nothing is kept.
    }

    release(): void {
        // The garbage collector frees the arrays.
    }

    #put(values: readonly Float32Array[], row: number, record: Uint8Array): void {
        for (let layer = 0; layer < values.length; layer++) {
            this.#decoder.values(record, layer, values[layer]!, row * this.#size);
        }
    }

    #named(values: readonly Float32Array[], positions: readonly number[]): Record<string, HostTensor> {
        const dims = [...positions, ...this.#shape];
        return Object.fromEntries(
            this.#layers.map((layer, i) => [`expert_value.${layer}`, { dtype: "float32", dims, data: values[i]! }]),
        );
    }
}
