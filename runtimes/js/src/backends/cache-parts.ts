/** The tensors of a KV cache: two for each layer that has a cache, in the order of the graph's inputs. */

import type { KvCacheShape, LayerSlots } from "../backend.js";
import { cacheNames } from "../format/cache-names.js";

/** The keys or the values of a layer: [B, heads, slots, size]. */
export interface CachePart {
    /** The input and the output of the graph. */
    readonly past: string;
    readonly present: string;
    readonly heads: number;
    readonly size: number;
}

/** Return the parts of a cache: the keys and the values of the first layer, then those of the next layer. */
export function cacheParts(caches: readonly KvCacheShape[]): CachePart[] {
    return caches.flatMap((cache) => {
        const presents = cacheNames("present", cache);
        return cacheNames("past_key_values", cache).map((past, kind) => {
            return { past, present: presents[kind]!, heads: cache.heads, size: cache.headDim };
        });
    });
}

/** Return the numbers of the part `index`. */
export function partOf(layers: readonly LayerSlots[], index: number): LayerSlots["key"] {
    const { key, value } = layers[index >> 1]!;
    return index % 2 === 0 ? key : value;
}

/** Return the numbers of all parts by their layers. */
export function layersOf(parts: readonly LayerSlots["key"][]): LayerSlots[] {
    return Array.from({ length: parts.length / 2 }, (_, layer) => {
        return { key: parts[2 * layer]!, value: parts[2 * layer + 1]! };
    });
}
