/** Log-probabilities (docs/bundle-format.md, "Text"): x - m - ln(sum of exp(x_j - m)), m the largest logit. */

import type { Logprob } from "../options.js";

/**
 * Return the log-probability of the chosen token, and those of the `count` likeliest tokens, likeliest first; of equal
 * logits, the lower ids come first. `logits` is [V].
 */
export function logProbabilities(
    logits: Float32Array,
    chosen: number,
    count: number,
): { readonly logprob: number; readonly best: Logprob[] } {
    let most = -Infinity;
    for (const logit of logits) most = Math.max(most, logit);
    let sum = 0;
    for (const logit of logits) sum += Math.exp(logit - most);
    const logSum = Math.log(sum);
    // The difference first: of a large sum of both, the logarithm would be lost to rounding.
    const logprobOf = (id: number): number => logits[id]! - most - logSum;
    const best = likeliest(logits, count).map((id) => ({ id, logprob: logprobOf(id) }));
    return { logprob: logprobOf(chosen), best };
}

/** Return the ids of the `count` largest logits, in descending order. */
function likeliest(logits: Float32Array, count: number): number[] {
    if (count === 0) return [];
    // The smallest logit that is returned: a sort of numbers is faster than one of ids.
    const border = logits.slice().sort().at(-count)!;
    const ids: number[] = [];
    for (let id = 0; id < logits.length; id++) if (logits[id]! >= border) ids.push(id);
    return ids.sort((first, second) => logits[second]! - logits[first]! || first - second).slice(0, count);
}
