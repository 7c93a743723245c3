/** The names of the KV cache's tensors in graphs and saved sessions. */

/** Return the names of the keys and of the values of a layer, such as "past_key_values.0.key". */
export function cacheNames(
    prefix: "past_key_values" | "present",
    { layer }: { readonly layer: number },
): [key: string, value: string] {
    return [`${prefix}.${layer}.key`, `${prefix}.${layer}.value`];
}
