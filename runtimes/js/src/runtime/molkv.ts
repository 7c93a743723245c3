/** The expert window of MoLKV (arXiv 2512.09723): a position sees the experts of the last W positions. */

import type { GraphSession, HostTensor, ResidentTensor } from "../backend.js";
import type { RecordDecoder } from "../format/record-decoder.js";
import type { Part } from "./chunks.js";
import type { ExpertState, Inputs } from "./experts.js";
import { type ExpertRows, moveRows, rowKinds, RowWriter, type WindowConfig } from "./window-rows.js";

/** Numbers of a float32 tensor that is -inf everywhere. */
function hiddenNumbers(count: number): Float32Array {
    return new Float32Array(count).fill(-Infinity);
}

/** Return the slots of a ring. A sequence of at most `maxLength` tokens never fills more. */
function ringSlots(config: WindowConfig, maxLength: number): number {
    return Math.min(config.expertWindow, maxLength);
}

/** Return the bytes of the rings of one sequence. */
export function windowBytes(config: WindowConfig, windowDtype: "float32" | "int8", maxLength: number): number {
    const row = rowKinds(config, windowDtype).reduce(
        (sum, { dtype, size }) => sum + size * (dtype === "int8" ? 1 : 4),
        0,
    );
    return config.expertLayers.length * ringSlots(config, maxLength) * row;
}

/**
 * Keeps the experts of B sequences in rings, which are tensors of the backend. Position p is in slot p mod W. A key is
 * rotated by its position once, when it enters the window.
 *
 * Prefill uses blocks of C positions in JavaScript's memory. A block holds the experts of the R = C + W - 1 positions
 * that its positions see, so memory and work grow with T * W. Records are decoded directly into the blocks.
 */
export class ExpertWindow implements ExpertState {
    readonly lookback: number;
    readonly blockLength: number;
    readonly stepInputs: Inputs;
    readonly #layers: readonly number[];
    readonly #window: number;
    readonly #experts: number;
    readonly #writer: RowWriter;
    /** For each layer and kind of rows: [B, W*N, vector], or [B, 1, W*N] for scales. */
    readonly #rings: ResidentTensor[][];
    /** [B, 1, W*N] */
    readonly #mask: ResidentTensor;
    /** Positions that a sequence sees in its row of `#mask`: the first slots. */
    readonly #visible: Uint32Array;
    /** One row, for each record that enters a ring. */
    readonly #entering: ExpertRows;
    readonly #zeros: Float32Array;
    readonly #hidden: Float32Array;
    /** The blocks of each layer. */
    #blocks: ExpertRows[] = [];
    #capacity = 0;
    #part: Part = { start: 0, length: 0, follows: false, keep: 0 };
    /** Positions of a block (C), and number of blocks. */
    #block = 1;
    #count = 0;
    /** The row of the last position of the part. */
    #last = 0;
    /** The mask of a part, and the first position, C and number of blocks that it is for. */
    #partMask: { readonly key: string; readonly tensor: HostTensor } | undefined;

    /** @param maxLength The most tokens of a sequence. */
    constructor(
        config: WindowConfig,
        windowDtype: "float32" | "int8",
        decoder: RecordDecoder,
        graph: GraphSession,
        batchSize: number,
        maxLength: number,
    ) {
        this.#layers = config.expertLayers;
        this.#window = ringSlots(config, maxLength);
        this.#experts = config.expertAttention.experts;
        this.lookback = this.#window - 1;
        this.blockLength = this.#window;
        this.#writer = new RowWriter(config, windowDtype, decoder);
        this.#entering = this.#writer.allocate(1);
        this.#visible = new Uint32Array(batchSize);
        const reach = this.#window * this.#experts;
        this.#zeros = new Float32Array(reach);
        this.#hidden = hiddenNumbers(reach);
        this.#mask = graph.createResident("float32", [batchSize, 1, reach]);
        for (let sequence = 0; sequence < batchSize; sequence++) this.#mask.write(sequence * reach, this.#hidden);
        this.#rings = this.#layers.map(() =>
            this.#writer.kinds.map(({ dtype, vector, array }) =>
                graph.createResident(dtype, array === "scale" ? [batchSize, 1, reach] : [batchSize, reach, vector]),
            ),
        );
        this.stepInputs = { expert_mask: this.#mask, ...this.#named((layer, kind) => this.#rings[layer]![kind]!) };
    }

    step(sequence: number, position: number, record: Uint8Array): void {
        this.restore(sequence, position, record);
        this.#show(sequence, Math.min(position + 1, this.#window));
    }

    wait(sequence: number, position: number, record: Uint8Array): void {
        // A sequence must see an expert, any one. If it does, nothing has to be written.
        if (this.#visible[sequence] === 0) this.step(sequence, position, record);
    }

    restore(sequence: number, position: number, record: Uint8Array): void {
        const row = sequence * this.#window + (position % this.#window);
        for (let layer = 0; layer < this.#layers.length; layer++) {
            this.#writer.write(record, layer, position, this.#entering, 0);
            this.#writer.kinds.forEach(({ array, size }, kind) => {
                this.#rings[layer]![kind]!.write(row * size, this.#entering[array]);
            });
        }
    }

    begin(part: Part): void {
        // In the rows of the previous part, its last position and the W - 2 positions before it.
        const before = this.#last - this.lookback + 1;
        this.#part = part;
        this.#block = Math.min(part.length, this.#window);
        this.#count = part.length / this.#block;
        const rows = this.#count * this.#reach;
        this.#last = rows - 1;
        if (part.follows) {
            for (const blocks of this.#blocks) moveRows(blocks, this.#writer.kinds, 0, before, this.lookback);
        } else if (this.#capacity < rows) {
            // A part that follows is not longer, so the rows of the previous part never have to be copied.
            this.#blocks = [];
            this.#capacity = 0;
            this.#blocks = this.#layers.map(() => this.#writer.allocate(rows));
            this.#capacity = rows;
        }
    }

    add(index: number, record: Uint8Array): void {
        const block = Math.max(0, Math.floor(index / this.#block));
        const inBlock = index - block * this.#block;
        const row = block * this.#reach + this.lookback + inBlock;
        // The next block sees all positions of this block except the first.
        const isShared = inBlock > 0 && block + 1 < this.#count;
        for (let layer = 0; layer < this.#layers.length; layer++) {
            const blocks = this.#blocks[layer]!;
            this.#writer.write(record, layer, this.#part.start + index, blocks, row);
            if (isShared) moveRows(blocks, this.#writer.kinds, (block + 1) * this.#reach + inBlock - 1, row, 1);
        }
    }

    inputs(): Inputs {
        const rows = this.#count * this.#reach;
        const seen = this.#reach * this.#experts;
        return {
            expert_mask: this.#maskOfPart(),
            ...this.#named((layer, kind): HostTensor => {
                const { array, dtype, vector, size } = this.#writer.kinds[kind]!;
                const dims = array === "scale" ? [this.#count, 1, seen] : [this.#count, seen, vector];
                return { dtype, dims, data: this.#blocks[layer]![array].subarray(0, rows * size) };
            }),
        };
    }

    finish(sequence: number, end: number): void {
        let row = this.#last + 1 - Math.min(end, this.#window);
        let position = end - Math.min(end, this.#window);
        while (position < end) {
            // The slots from this position's on, to the end of the ring.
            const slot = position % this.#window;
            const count = Math.min(end - position, this.#window - slot);
            for (let layer = 0; layer < this.#layers.length; layer++) {
                this.#writer.kinds.forEach(({ array, size }, kind) => {
                    const numbers = this.#blocks[layer]![array].subarray(row * size, (row + count) * size);
                    this.#rings[layer]![kind]!.write((sequence * this.#window + slot) * size, numbers);
                });
            }
            row += count;
            position += count;
        }
    }

    release(): void {
        this.#mask.release();
        for (const rings of this.#rings) for (const ring of rings) ring.release();
    }

    /** R: the positions that a block sees. */
    get #reach(): number {
        return this.#block + this.lookback;
    }

    #named<T>(tensor: (layer: number, kind: number) => T): Record<string, T> {
        const found: Record<string, T> = {};
        this.#layers.forEach((number, layer) => {
            this.#writer.kinds.forEach(({ input }, kind) => {
                found[`${input}.${number}`] = tensor(layer, kind);
            });
        });
        return found;
    }

    /** Make the first `count` slots of a sequence visible, and hide the others. */
    #show(sequence: number, count: number): void {
        const before = this.#visible[sequence]!;
        if (count === before) return;
        const numbers = count > before ? this.#zeros : this.#hidden;
        const first = Math.min(count, before);
        const changed = Math.abs(count - before) * this.#experts;
        this.#mask.write((sequence * this.#window + first) * this.#experts, numbers.subarray(0, changed));
        this.#visible[sequence] = count;
    }

    /** Return the mask [blocks, C, R*N] of the part. */
    #maskOfPart(): HostTensor {
        // The mask is the same for all parts that begin at W or later, so it can be used again.
        const start = Math.min(this.#part.start, this.#window);
        const key = [start, this.#block, this.#count].join();
        if (this.#partMask?.key === key) return this.#partMask.tensor;
        const seen = this.#reach * this.#experts;
        const data = hiddenNumbers(this.#count * this.#block * seen);
        for (let t = 0; t < this.#count * this.#block; t++) {
            // Row r of a block belongs to position start + k*C + r - (W - 1), where k*C is t - inBlock.
            const inBlock = t % this.#block;
            const first = Math.max(inBlock, this.lookback - start - (t - inBlock));
            data.fill(0, t * seen + first * this.#experts, t * seen + (inBlock + this.#window) * this.#experts);
        }
        const tensor: HostTensor = { dtype: "float32", dims: [this.#count, this.#block, seen], data };
        this.#partMask = { key, tensor };
        return tensor;
    }
}
