/** A graph whose KV cache and decode windows are in GPU buffers: onnxruntime-web with WebGPU. */

import { MemoryError, ProviderError, RequestError } from "../errors.js";
import type {
    GraphCall,
    GraphFiles,
    GraphSession,
    KvCache,
    LayerSlots,
    ResidentTensor,
    TensorData,
    TensorDType,
} from "../backend.js";
import type { CacheShape } from "./host-session.js";
import { HostResident, cacheShape } from "./host-session.js";
import type { Ort, OrtFetches, OrtSession, OrtTensor } from "./onnxruntime.js";
import { checkSlots, createSession, isHostTensor, keepOneLogit, runError, toOrt } from "./onnxruntime.js";

const FLOAT_BYTES = 4;
const NUMBER_BYTES = { float32: 4, int32: 4, int64: 8 } as const;
type GpuDType = keyof typeof NUMBER_BYTES;

/** The names of the cache's tensors without their prefix: "0.key", "0.value", "1.key", ... */
function cacheNames(layers: number): string[] {
    return Array.from({ length: layers }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat();
}

const VECTOR_BYTES = 16;

/** Return a buffer of zeros for `bytes`. @throws MemoryError A buffer cannot be as large. */
function createBuffer(device: GPUDevice, bytes: number): GPUBuffer {
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

/** A set of buffers, one for each of `cacheNames`. */
type Buffers = GPUBuffer[];

/**
 * A float32 KV cache in GPU buffers, [B, Hkv, slots, head_dim] for each name.
 *
 * A call reads one set of buffers as its past and writes the present into another set; then the sets change places. So
 * the result does not depend on whether the provider can write in place.
 */
class GpuKvCache implements KvCache {
    readonly batchSize: number;
    private readonly device: GPUDevice;
    private readonly shape: CacheShape;
    private slotCount: number;
    private past: Buffers = [];
    private present: Buffers | undefined;
    /** Past and present of one sequence of a larger batch. */
    private row: { past: Buffers; present: Buffers } | undefined;
    /** Rejected if a buffer did not fit into memory. */
    private readonly ready: Promise<unknown>;

    constructor(device: GPUDevice, shape: CacheShape, batchSize: number, slots: number) {
        this.device = device;
        this.shape = shape;
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
        const heads = this.batchSize * this.shape.heads;
        const bytes = this.slotCount * this.slotBytes;
        const copies = this.past.flatMap((from, index) =>
            Array.from({ length: heads }, (_, head) => ({
                from,
                fromOffset: head * bytes,
                to: larger[index]!,
                toOffset: head * slots * this.slotBytes,
                bytes,
            })),
        );
        submitCopies(this.device, copies);
        this.release();
        this.past = larger;
        this.slotCount = slots;
    }

    async read(sequence: number, count: number): Promise<LayerSlots[]> {
        await this.ready;
        const { heads, size } = this.shape;
        const bytes = count * this.slotBytes;
        const layers = this.past.map(() => new Float32Array(heads * count * size));
        if (bytes > 0) {
            const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
            for (const [index, from] of this.past.entries()) {
                const staging = this.device.createBuffer({ size: heads * bytes, usage });
                const copies = this.headCopies(sequence, 0, (head, offset) => {
                    return { from, fromOffset: offset, to: staging, toOffset: head * bytes, bytes };
                });
                submitCopies(this.device, copies);
                try {
                    await staging.mapAsync(GPUMapMode.READ);
                    layers[index]!.set(new Float32Array(staging.getMappedRange()));
                } catch (error) {
                    throw lostError(error);
                } finally {
                    staging.destroy();
                }
            }
        }
        return Array.from({ length: this.shape.layers }, (_, layer) => {
            return { key: layers[2 * layer]!, value: layers[2 * layer + 1]! };
        });
    }

    async write(sequence: number, first: number, layers: readonly LayerSlots[]): Promise<void> {
        await this.ready;
        const { heads, size } = this.shape;
        for (const [index, buffer] of this.past.entries()) {
            const layer = layers[index >> 1]!;
            const data = (index % 2 === 0 ? layer.key : layer.value) as Float32Array<ArrayBuffer>;
            const numbers = data.length / heads;
            for (let head = 0; head < heads; head++) {
                const offset = this.offset(sequence, head) + first * size * FLOAT_BYTES;
                this.device.queue.writeBuffer(buffer, offset, data, head * numbers, numbers);
            }
        }
    }

    async copy(sequence: number, source: KvCache, sourceSequence: number, count: number): Promise<void> {
        const other = ownCache(source);
        await Promise.all([this.ready, other.ready]);
        const bytes = count * this.slotBytes;
        // WebGPU refuses copies within one buffer.
        const staged = other === this;
        const targets = staged ? this.createBuffers(1, count) : this.past;
        const into = other.past.flatMap((from, index) =>
            other.headCopies(sourceSequence, 0, (head, fromOffset) => {
                const toOffset = staged ? head * bytes : this.offset(sequence, head);
                return { from, fromOffset, to: targets[index]!, toOffset, bytes };
            }),
        );
        submitCopies(this.device, into);
        if (!staged) return;
        const back = targets.flatMap((from, index) =>
            this.headCopies(sequence, 0, (head, toOffset) => {
                return { from, fromOffset: head * bytes, to: this.past[index]!, toOffset, bytes };
            }),
        );
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
        const bytes = this.shape.heads * this.slotCount * this.slotBytes;
        const offset = this.offset(sequence, 0);
        submitCopies(
            this.device,
            this.past.map((from, index) => ({ from, fromOffset: offset, to: row.past[index]!, toOffset: 0, bytes })),
        );
        const result = await run(1, row.past, row.present);
        submitCopies(
            this.device,
            this.past.map((to, index) => ({ from: row.present[index]!, fromOffset: 0, to, toOffset: offset, bytes })),
        );
        return result;
    }

    private get slotBytes(): number {
        return this.shape.size * FLOAT_BYTES;
    }

    /** Bytes from the start of a buffer to a head's first slot. */
    private offset(sequence: number, head: number): number {
        return (sequence * this.shape.heads + head) * this.slotCount * this.slotBytes;
    }

    private headCopies(sequence: number, first: number, copy: (head: number, offset: number) => Copy): Copy[] {
        return Array.from({ length: this.shape.heads }, (_, head) =>
            copy(head, this.offset(sequence, head) + first * this.slotBytes),
        );
    }

    private createBuffers(batchSize: number, slots: number): Buffers {
        const bytes = Math.max(batchSize * this.shape.heads * slots * this.slotBytes, FLOAT_BYTES);
        return cacheNames(this.shape.layers).map(() => createBuffer(this.device, bytes));
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

function ownCache(cache: KvCache): GpuKvCache {
    if (cache instanceof GpuKvCache) return cache;
    throw new RequestError("cache: found a KV cache of another backend, expected one of the same graph");
}

function lostError(error: unknown): ProviderError {
    return new ProviderError("WebGPU: the device was lost or an earlier call failed; open the page again", {
        cause: error,
    });
}

function rethrowLost(error: unknown): never {
    throw lostError(error);
}

/** A tensor in a GPU buffer. */
class GpuResident implements ResidentTensor {
    readonly dtype: GpuDType;
    readonly dims: readonly number[];
    readonly tensor: OrtTensor;
    private readonly device: GPUDevice;
    private readonly buffer: GPUBuffer;

    constructor(ort: Ort, device: GPUDevice, dtype: GpuDType, dims: readonly number[]) {
        this.device = device;
        this.dtype = dtype;
        this.dims = dims;
        const numbers = dims.reduce((product, size) => product * size, 1);
        this.buffer = createBuffer(device, numbers * NUMBER_BYTES[dtype]);
        this.tensor = ort.Tensor.fromGpuBuffer(this.buffer, { dataType: dtype, dims: [...dims] });
    }

    write(offset: number, data: TensorData): void {
        const at = offset * NUMBER_BYTES[this.dtype];
        this.device.queue.writeBuffer(this.buffer, at, data as Float32Array<ArrayBuffer>);
    }

    release(): void {
        this.buffer.destroy();
    }
}

/** How a backend runs graphs on a GPU. */
export interface GpuProvider {
    readonly ort: Ort;
    /** For messages. */
    readonly name: string;
    /** The device that ONNX Runtime must use; undefined: it makes its own device. */
    readonly device: GPUDevice | undefined;
}

/**
 * Load a graph with a float32 KV cache, which is in GPU buffers.
 *
 * @throws ProviderError ONNX Runtime refuses the graph, or there is no GPU.
 */
export async function loadGpuSession(provider: GpuProvider, files: GraphFiles): Promise<GraphSession> {
    const { ort, name, device } = provider;
    const webgpu = device === undefined ? { name: "webgpu" as const } : { name: "webgpu" as const, device };
    const options = { executionProviders: [webgpu] };
    const session = await createSession(ort, name, files, files.graph, options);
    return new GpuSession(ort, name, session, device ?? (await ort.env.webgpu.device), files);
}

class GpuSession implements GraphSession {
    readonly inputNames: readonly string[];
    readonly outputNames: readonly string[];
    private readonly shape: CacheShape;
    /** After a failed call every call gives wrong numbers or hangs. */
    private failed: unknown;

    constructor(
        private readonly ort: Ort,
        private readonly name: string,
        private readonly session: OrtSession,
        private readonly device: GPUDevice,
        private readonly files: GraphFiles,
    ) {
        this.shape = cacheShape(files);
        this.inputNames = session.inputNames;
        this.outputNames = session.outputNames;
        void device.lost.then((lost) => (this.failed ??= lost));
    }

    createCache(batchSize: number, slots: number): KvCache {
        return new GpuKvCache(this.device, this.shape, batchSize, slots);
    }

    createResident(dtype: TensorDType, dims: readonly number[]): ResidentTensor {
        const numbers = dims.reduce((product, size) => product * size, 1);
        // ONNX Runtime takes no int8 from a GPU buffer, and writes to a buffer are multiples of 4 bytes.
        if (dtype === "int8" || dtype === "float16" || numbers === 0) return new HostResident(dtype, dims);
        return new GpuResident(this.ort, this.device, dtype, dims);
    }

    async run(call: GraphCall): Promise<Float32Array> {
        const cache = ownCache(call.cache);
        checkSlots(call);
        if (this.failed !== undefined) throw lostError(this.failed);
        const { inputs, wanted } = keepOneLogit(call.inputs);
        const feeds: Record<string, OrtTensor> = {};
        for (const [name, tensor] of Object.entries(inputs)) {
            if (tensor instanceof GpuResident) feeds[name] = tensor.tensor;
            else if (isHostTensor(tensor)) feeds[name] = toOrt(this.ort, tensor);
            else throw new RequestError(`${name}: found a tensor of another backend, expected one of this graph`);
        }
        const logits = await cache.use(call.sequence, async (batchSize, past, present) => {
            const dims = [batchSize, this.shape.heads, cache.slots, this.shape.size];
            const fetches: OrtFetches = { logits: null };
            for (const [index, name] of cacheNames(this.shape.layers).entries()) {
                feeds[`past_key_values.${name}`] = this.share(past[index]!, dims);
                fetches[`present.${name}`] = this.share(present[index]!, dims);
            }
            return this.runGraph(feeds, fetches);
        });
        return wanted ? logits : new Float32Array(0);
    }

    async release(): Promise<void> {
        await this.session.release();
    }

    private async runGraph(feeds: Record<string, OrtTensor>, fetches: OrtFetches): Promise<Float32Array> {
        try {
            const outputs = await this.session.run(feeds, fetches);
            return (await outputs.logits!.getData()) as Float32Array;
        } catch (error) {
            const lost = this.failed !== undefined;
            this.failed ??= error;
            throw lost ? lostError(error) : runError(this.files.where, this.name, error);
        }
    }

    private share(buffer: GPUBuffer, dims: readonly number[]): OrtTensor {
        return this.ort.Tensor.fromGpuBuffer(buffer, { dataType: "float32", dims: [...dims] });
    }
}

/** Calls are right on GPUs whose subgroups have at least this number of lanes. */
const LEAST_SUBGROUP = 8;

/**
 * Return the device that ONNX Runtime must use, or undefined if it can make its own.
 *
 * With the feature "subgroups" GroupQueryAttention computes wrong numbers on adapters with small subgroups, such as
 * SwiftShader, so these adapters get a device without the feature.
 *
 * @throws ProviderError There is no GPU.
 */
export async function requestDevice(): Promise<GPUDevice | undefined> {
    const gpu = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
    const adapter = await gpu?.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) {
        throw new ProviderError('WebGPU: found no adapter; use the provider "wasm", or another browser');
    }
    const least = (adapter.info as Partial<GPUAdapterInfo>).subgroupMinSize ?? 0;
    if (!adapter.features.has("subgroups") || least >= LEAST_SUBGROUP) return undefined;
    const features = [...adapter.features] as GPUFeatureName[];
    const { limits } = adapter;
    return adapter.requestDevice({
        requiredFeatures: features.filter((feature) => feature === "shader-f16"),
        requiredLimits: {
            maxBufferSize: limits.maxBufferSize,
            maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
            maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
            maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
            maxComputeInvocationsPerWorkgroup: limits.maxComputeInvocationsPerWorkgroup,
            maxComputeWorkgroupSizeX: limits.maxComputeWorkgroupSizeX,
            maxComputeWorkgroupSizeY: limits.maxComputeWorkgroupSizeY,
            maxComputeWorkgroupSizeZ: limits.maxComputeWorkgroupSizeZ,
            maxComputeWorkgroupsPerDimension: limits.maxComputeWorkgroupsPerDimension,
        },
    });
}
