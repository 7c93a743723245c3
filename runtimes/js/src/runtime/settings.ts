/** The checks of the options of a call that generates. */

import { BundleError } from "../errors.js";
import type { GenerateOptions } from "../options.js";
import type { Bundle } from "./bundle.js";
import { abortSignal, listOf, optionsOf, wholeNumber } from "./checks.js";
import { GREEDY, resolveSampling, type ResolvedSampling } from "./sampling-parameters.js";
import { StopStrings } from "./text-stream.js";
import type { Tokenizer } from "./tokenizer/tokenizer.js";

const DEFAULT_NEW_TOKENS = 128;

/** Checked options of a call. */
export interface Settings {
    readonly maxNewTokens: number;
    readonly sampling: ResolvedSampling;
    readonly stopIds: ReadonlySet<number>;
    /** Strings that end a text; [] if there are none. */
    readonly stop: readonly string[];
    /** The number of likeliest tokens to return; undefined: no log-probabilities. */
    readonly logprobs: number | undefined;
    readonly signal: AbortSignal | undefined;
    /** Converts tokens to text; undefined: tokens have no text. */
    readonly tokenizer: Tokenizer | undefined;
}

/**
 * Check the options of a call. `tokenizer` is the bundle's; `hasText` says whether tokens have text also without stop
 * strings.
 *
 * @throws RequestError An option is impossible.
 * @throws BundleError There are stop strings, and the bundle has no tokenizer.
 */
export function settingsOf(
    bundle: Bundle,
    options: GenerateOptions,
    tokenizer: Tokenizer | undefined,
    hasText: boolean,
): Settings {
    const { maxNewTokens, sampling, logprobs, signal } = optionsOf(options);
    const { generation } = bundle.manifest;
    const { vocabSize } = bundle.config;
    const stop = new StopStrings(listOf("stop", options.stop ?? [], "strings")).strings;
    if (stop.length > 0 && tokenizer === undefined) {
        throw new BundleError(
            `${bundle.path("tokenizer.json")}: is not part of the bundle, so stop strings cannot be used`,
        );
    }
    const stopIds = listOf("stopIds", options.stopIds ?? generation.eosTokenIds, "token ids");
    return {
        maxNewTokens: wholeNumber("maxNewTokens", maxNewTokens ?? DEFAULT_NEW_TOKENS, 1),
        // As in the other drivers, the bundle's defaults are used as a whole or not at all.
        sampling: resolveSampling(sampling === undefined ? generation.sampling : GREEDY, sampling, vocabSize),
        // A special token is not shown. So a stop string that is its name can only be found by its id.
        stopIds: new Set([
            ...stopIds.map((id) => wholeNumber("stopIds", id, 0)),
            ...stop.flatMap((text) => tokenizer!.specialIds(text)),
        ]),
        stop,
        logprobs: logprobs === undefined ? undefined : wholeNumber("logprobs", logprobs, 0, vocabSize),
        signal: abortSignal(signal),
        tokenizer: hasText || stop.length > 0 ? tokenizer : undefined,
    };
}
