/** The calls of the graph: how positions and their records become inputs. */

import type { GraphCall, GraphSession, HostTensor, KvCache, TensorDType, TensorData } from "../backend.js";
import type { RecordDecoder } from "../format/record-decoder.js";
import type { Bundle } from "./bundle.js";
import type { Part } from "./chunks.js";
import type { ExpertState } from "./experts.js";

/** What `Calls` needs. */
export interface CallOptions {
    readonly bundle: Bundle;
    readonly graph: GraphSession;
    readonly decoder: RecordDecoder;
    readonly experts: ExpertState;
    readonly cache: KvCache;
    readonly batchSize: number;
}

/** Builds the calls of a batch of sequences. */
export class Calls {
    readonly #options: CallOptions;
    readonly #hiddenSize: number;
    readonly #hasPositions: boolean;
    /** The inputs of decode steps that change: embeddings [B, 1, d], positions [B, 1] and [B], the longest length. */
    readonly #embeds: Float32Array;
    readonly #positionIds: BigInt64Array;
    readonly #seqlens: Int32Array;
    readonly #total = new Int32Array(1);
    readonly #starts: number[];
    readonly #step: GraphCall;
    /** The embeddings of a part of a prompt, with room for the longest part so far. */
    #partEmbeds = new Float32Array(0);

    constructor(options: CallOptions) {
        this.#options = options;
        const { bundle, experts, cache, batchSize } = options;
        this.#hiddenSize = bundle.config.hiddenSize;
        this.#hasPositions = bundle.graphFile.inputs.some(({ name }) => name === "position_ids");
        this.#embeds = new Float32Array(batchSize * this.#hiddenSize);
        this.#positionIds = new BigInt64Array(batchSize);
        this.#seqlens = new Int32Array(batchSize);
        this.#starts = Array.from(this.#seqlens);
        const inputs = {
            ...this.#common(this.#embeds, this.#positionIds, this.#seqlens, this.#total, 1),
            ...experts.stepInputs,
        };
        this.#step = { inputs, cache, starts: this.#starts, length: 1 };
    }

    /**
     * Return the call for a decode step, which is valid until the next step.
     *
     * @param positions The next position of each sequence [B].
     * @param active Whether each sequence continues [B]. At least one does.
     * @param records The records of the sequences that continue, in order.
     */
    step(positions: readonly number[], active: readonly boolean[], records: readonly Uint8Array[]): GraphCall {
        const { decoder, experts } = this.#options;
        let longest = 0;
        let next = 0;
        for (let sequence = 0; sequence < positions.length; sequence++) {
            const position = positions[sequence]!;
            // A sequence that waits gets an arbitrary token: that of the first sequence that continues.
            const record = records[active[sequence] ? next++ : 0]!;
            decoder.embedding(record, this.#embeds, sequence * this.#hiddenSize);
            if (active[sequence]) experts.step(sequence, position, record);
            else experts.wait(sequence, position, record);
            this.#positionIds[sequence] = BigInt(position);
            this.#seqlens[sequence] = position;
            this.#starts[sequence] = position;
            longest = Math.max(longest, position + 1);
        }
        this.#total[0] = longest;
        return this.#step;
    }

    /**
     * Return the call for a part of a prompt, which is valid until the next part.
     *
     * @param before The records of the positions before the part that the part sees; none if the part follows another.
     * @param records The records of the part's positions.
     */
    part(sequence: number, part: Part, before: readonly Uint8Array[], records: readonly Uint8Array[]): GraphCall {
        const { decoder, experts, cache } = this.#options;
        const { start, length, keep } = part;
        const size = this.#hiddenSize;
        if (this.#partEmbeds.length < length * size) this.#partEmbeds = new Float32Array(length * size);
        experts.begin(part);
        before.forEach((record, i) => {
            experts.add(i - before.length, record);
        });
        records.forEach((record, i) => {
            decoder.embedding(record, this.#partEmbeds, i * size);
            experts.add(i, record);
        });
        const positions = BigInt64Array.from({ length }, (_, i) => BigInt(start + i));
        const end = start + length;
        const embeds = this.#partEmbeds.subarray(0, length * size);
        const common = this.#common(embeds, positions, Int32Array.of(end - 1), Int32Array.of(end), keep);
        return { inputs: { ...common, ...experts.inputs() }, cache, sequence, starts: [start], length };
    }

    /** Return the inputs that do not depend on the family. */
    #common(
        embeds: Float32Array,
        positions: BigInt64Array,
        seqlens: Int32Array,
        total: Int32Array,
        keep: number,
    ): Record<string, HostTensor> {
        const batch = seqlens.length;
        const length = positions.length / batch;
        const tensor = (dtype: TensorDType, dims: readonly number[], data: TensorData): HostTensor => {
            return { dtype, dims, data };
        };
        return {
            inputs_embeds: tensor("float32", [batch, length, this.#hiddenSize], embeds),
            ...(this.#hasPositions ? { position_ids: tensor("int64", [batch, length], positions) } : {}),
            seqlens_k: tensor("int32", [batch], seqlens),
            total_sequence_length: tensor("int32", [], total),
            logits_to_keep: tensor("int64", [1], BigInt64Array.of(BigInt(keep))),
        };
    }
}
