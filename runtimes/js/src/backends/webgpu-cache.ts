/** A KV cache in GPU buffers. */

import type { KvCache, LayerSlots } from "../backend.js";
import { MemoryError, ProviderError, RequestError } from "../errors.js";
import { layersOf, partOf, type CachePart } from "./cache-parts.js";

const FLOAT_BYTES = 4;
const VECTOR_BYTES = 16;

/** Return a buffer of zeros for `bytes`. @throws MemoryError A buffer cannot be as large. */
export function createBuffer(device: GPUDevice, bytes: number): GPUBuffer {
    const most = Math.min(device.limits.maxBufferSize, device.limits.maxStorageBufferBindingSize);
    if (bytes > most) {
        throw new MemoryError(
            `WebGPU: a tensor of ${bytes} bytes is larger than the device allows (${most}); use a shorter context or ` +
                "fewer sequences",
        );
    }
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    // ONNX Runtime's shaders read four numbers at a time, also the last ones. Its own buffers are as large as this.
    return device.createBuffer({ size: Math.ceil(bytes / VECTOR_BYTES) * VECTOR_BYTES, usage });
}

/** A copy of bytes between two buffers. */
interface Copy {
    readonly from: GPUBuffer;
    readonly fromOffset: number;
    readonly to: GPUBuffer;
    readonly toOffset: number;
    readonly bytes: number;
}

/** Run copies in the order of the queue, so later calls see them. */
function submitCopies(device: GPUDevice, copies: readonly Copy[]): void {
    const encoder = device.createCommandEncoder();
    for (const { from, fromOffset, to, toOffset, bytes } of copies) {
        if (bytes > 0) encoder.copyBufferToBuffer(from, fromOffset, to, toOffset, bytes);
    }
    device.queue.submit([encoder.finish()]);
}

/** A set of buffers, one for each part of the cache. */
type Buffers = GPUBuffer[];

/**
 * A float32 KV cache in GPU buffers, [B, heads, slots, size] for each part.
 *
 * A call reads one set of buffers as its past and writes the present into another set; then the sets change places. So
 * the result does not depend on whether the provider can write in place.
 */
export class GpuKvCache implements KvCache {
    readonly batchSize: number;
    private readonly device: GPUDevice;
    private readonly parts: readonly CachePart[];
    private slotCount: number;
    private past: Buffers = [];
    private present: Buffers | undefined;
    /** Past and present of one sequence of a larger batch. */
    private row: { past: Buffers; present: Buffers } | undefined;
    /** Rejected if a buffer did not fit into memory. */
    private readonly ready: Promise<unknown>;

    constructor(device: GPUDevice, parts: readonly CachePart[], batchSize: number, slots: number) {
        this.device = device;
        this.parts = parts;
        this.batchSize = batchSize;
        this.slotCount = slots;
        this.ready = this.checked(() => (this.past = this.createBuffers(batchSize, slots)));
        // Every method that uses the buffers awaits `ready`.
        this.ready.catch(() => undefined);
    }

    get slots(): number {
        return this.slotCount;
    }

    async grow(slots: number): Promise<void> {
        if (slots <= this.slotCount) return;
        await this.ready;
        const larger = await this.checked(() => this.createBuffers(this.batchSize, slots));
        const copies = this.parts.flatMap((part, index) => {
            const bytes = this.slotCount * slotBytes(part);
            return Array.from({ length: this.batchSize * part.heads }, (_, head) => ({
                from: this.past[index]!,
                fromOffset: head * bytes,
                to: larger[index]!,
                toOffset: head * slots * slotBytes(part),
                bytes,
            }));
        });
        submitCopies(this.device, copies);
        this.release();
        this.past = larger;
        this.slotCount = slots;
    }

    async read(sequence: number, count: number): Promise<LayerSlots[]> {
        await this.ready;
        const found: Float32Array[] = [];
        for (const index of this.parts.keys()) found.push(await this.readPart(index, sequence, count));
        return layersOf(found);
    }

    async write(sequence: number, first: number, layers: readonly LayerSlots[]): Promise<void> {
        await this.ready;
        this.parts.forEach((part, index) => {
            const data = partOf(layers, index) as Float32Array<ArrayBuffer>;
            const numbers = data.length / part.heads;
            for (let head = 0; head < part.heads; head++) {
                const offset = this.offset(part, sequence, head) + first * slotBytes(part);
                this.device.queue.writeBuffer(this.past[index]!, offset, data, head * numbers, numbers);
            }
        });
    }

    async copy(sequence: number, source: KvCache, sourceSequence: number, count: number): Promise<void> {
        const other = ownCache(source);
        await Promise.all([this.ready, other.ready]);
        // WebGPU refuses copies within one buffer.
        const staged = other === this;
        const targets = staged ? this.createBuffers(1, count) : this.past;
        const into = this.parts.flatMap((part, index) => {
            const bytes = count * slotBytes(part);
            return other.headCopies(part, sourceSequence, (head, fromOffset) => {
                const toOffset = staged ? head * bytes : this.offset(part, sequence, head);
                return { from: other.past[index]!, fromOffset, to: targets[index]!, toOffset, bytes };
            });
        });
        submitCopies(this.device, into);
        if (!staged) return;
        const back = this.parts.flatMap((part, index) => {
            const bytes = count * slotBytes(part);
            return this.headCopies(part, sequence, (head, toOffset) => {
                return { from: targets[index]!, fromOffset: head * bytes, to: this.past[index]!, toOffset, bytes };
            });
        });
        submitCopies(this.device, back);
        for (const buffer of targets) buffer.destroy();
    }

    release(): void {
        const row = this.row === undefined ? [] : [...this.row.past, ...this.row.present];
        for (const buffer of [...this.past, ...(this.present ?? []), ...row]) buffer.destroy();
        this.past = [];
        this.present = undefined;
        this.row = undefined;
    }

    /**
     * Call `run` with the buffers of one sequence or of all (undefined), and keep what it writes into `present`. If it
     * fails, the cache stays as it was.
     */
    async use<T>(
        sequence: number | undefined,
        run: (batchSize: number, past: Buffers, present: Buffers) => Promise<T>,
    ): Promise<T> {
        await this.ready;
        if (sequence === undefined || this.batchSize === 1) {
            const present = (this.present ??= await this.checked(() =>
                this.createBuffers(this.batchSize, this.slotCount),
            ));
            const result = await run(this.batchSize, this.past, present);
            [this.past, this.present] = [present, this.past];
            return result;
        }
        const row = (this.row ??= await this.checked(() => ({
            past: this.createBuffers(1, this.slotCount),
            present: this.createBuffers(1, this.slotCount),
        })));
        const places = this.parts.map((part) => {
            return { offset: this.offset(part, sequence, 0), bytes: part.heads * this.slotCount * slotBytes(part) };
        });
        const { past } = this;
        const into = places.map(({ offset, bytes }, index) => {
            return { from: past[index]!, fromOffset: offset, to: row.past[index]!, toOffset: 0, bytes };
        });
        submitCopies(this.device, into);
        const result = await run(1, row.past, row.present);
        const back = places.map(({ offset, bytes }, index) => {
            return { from: row.present[index]!, fromOffset: 0, to: past[index]!, toOffset: offset, bytes };
        });
        submitCopies(this.device, back);
        return result;
    }

    /** Return the first `count` slots of a sequence in one part. */
    private async readPart(index: number, sequence: number, count: number): Promise<Float32Array> {
        const part = this.parts[index]!;
        const bytes = count * slotBytes(part);
        if (bytes === 0) return new Float32Array(0);
        const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
        const staging = this.device.createBuffer({ size: part.heads * bytes, usage });
        const copies = this.headCopies(part, sequence, (head, fromOffset) => {
            return { from: this.past[index]!, fromOffset, to: staging, toOffset: head * bytes, bytes };
        });
        submitCopies(this.device, copies);
        try {
            await staging.mapAsync(GPUMapMode.READ);
            return new Float32Array(staging.getMappedRange()).slice();
        } catch (error) {
            throw lostError(error);
        } finally {
            staging.destroy();
        }
    }

    /** Bytes from the start of a part's buffer to a head's first slot. */
    private offset(part: CachePart, sequence: number, head: number): number {
        return (sequence * part.heads + head) * this.slotCount * slotBytes(part);
    }

    private headCopies(part: CachePart, sequence: number, copy: (head: number, offset: number) => Copy): Copy[] {
        return Array.from({ length: part.heads }, (_, head) => copy(head, this.offset(part, sequence, head)));
    }

    private createBuffers(batchSize: number, slots: number): Buffers {
        return this.parts.map((part) => {
            const bytes = batchSize * part.heads * slots * slotBytes(part);
            return createBuffer(this.device, Math.max(bytes, FLOAT_BYTES));
        });
    }

    /** Return the result of `make`. @throws MemoryError The GPU has not enough memory, which WebGPU reports later. */
    private async checked<T>(make: () => T): Promise<T> {
        this.device.pushErrorScope("out-of-memory");
        let report: Promise<GPUError | null>;
        let made: T;
        try {
            made = make();
        } finally {
            report = this.device.popErrorScope();
        }
        if ((await report.catch(rethrowLost)) === null) return made;
        throw new MemoryError(
            "WebGPU: the KV cache does not fit into the GPU's memory; use a shorter context or fewer sequences",
        );
    }
}

/** Bytes of a slot of one head. */
function slotBytes({ size }: CachePart): number {
    return size * FLOAT_BYTES;
}

/** Return a cache of this backend. @throws RequestError It is of another backend. */
export function ownCache(cache: KvCache): GpuKvCache {
    if (cache instanceof GpuKvCache) return cache;
    throw new RequestError("cache: found a KV cache of another backend, expected one of the same graph");
}

/** Return the error of a device that computes nothing any more. */
export function lostError(error: unknown): ProviderError {
    return new ProviderError("WebGPU: the device was lost or an earlier call failed; open the page again", {
        cause: error,
    });
}

function rethrowLost(error: unknown): never {
    throw lostError(error);
}
