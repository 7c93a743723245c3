/** A graph whose KV cache and decode windows are in GPU buffers: onnxruntime-web with WebGPU. */

import { ProviderError, RequestError } from "../errors.js";
import type {
    GraphCall,
    GraphFiles,
    GraphSession,
    KvCache,
    ResidentTensor,
    TensorData,
    TensorDType,
} from "../backend.js";
import { cacheParts, type CachePart } from "./cache-parts.js";
import { HostResident } from "./host-session.js";
import type { Ort, OrtFetches, OrtSession, OrtTensor } from "./onnxruntime.js";
import { checkSlots, createSession, isHostTensor, keepOneLogit, runError, toOrt } from "./onnxruntime.js";
import { createBuffer, GpuKvCache, lostError, ownCache } from "./webgpu-cache.js";

const NUMBER_BYTES = { float32: 4, int32: 4, int64: 8 } as const;
type GpuDType = keyof typeof NUMBER_BYTES;

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
    private readonly parts: readonly CachePart[];
    /** After a failed call every call gives wrong numbers or hangs. */
    private failed: unknown;

    constructor(
        private readonly ort: Ort,
        private readonly name: string,
        private readonly session: OrtSession,
        private readonly device: GPUDevice,
        private readonly files: GraphFiles,
    ) {
        this.parts = cacheParts(files.caches);
        this.inputNames = session.inputNames;
        this.outputNames = session.outputNames;
        void device.lost.then((lost) => (this.failed ??= lost));
    }

    createCache(batchSize: number, slots: number): KvCache {
        return new GpuKvCache(this.device, this.parts, batchSize, slots);
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
            const fetches: OrtFetches = { logits: null };
            for (const [index, part] of this.parts.entries()) {
                const dims = [batchSize, part.heads, cache.slots, part.size];
                feeds[part.past] = this.share(past[index]!, dims);
                fetches[part.present] = this.share(present[index]!, dims);
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
