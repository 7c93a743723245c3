/** The contents of runtimes/conformance/cases.json (its README explains the fields). */

import type { ErrorKind } from "../../src/errors.js";
import type { Finish, Message } from "../../src/options.js";

export interface Expected {
    readonly ids: readonly number[];
    readonly finish: Finish;
    readonly compared: number;
    readonly pieces?: readonly string[];
    readonly logprobs?: readonly (readonly number[])[];
}

export interface CaseSampling {
    readonly temperature?: number;
    readonly top_k?: number;
    readonly top_p?: number;
    readonly min_p?: number;
    readonly repetition_penalty?: number;
    readonly presence_penalty?: number;
    readonly frequency_penalty?: number;
    readonly logit_bias?: Readonly<Record<number, number>>;
    readonly seed: string;
}

/** The fields of a generation. */
export interface Generation {
    readonly prompts: readonly (readonly number[])[];
    readonly max_new_tokens: number;
    readonly sampling?: CaseSampling;
    readonly stop_ids?: readonly number[];
    readonly stop?: readonly string[];
    readonly logprobs?: number;
    readonly lookup?: number;
}

export type Step = { readonly error?: ErrorKind } & (
    | { readonly do: "prefill"; readonly sequence: number; readonly ids: readonly number[]; readonly logit: Logit }
    | {
          readonly do: "decode";
          readonly ids: readonly number[];
          readonly active: readonly boolean[];
          readonly logits: readonly (Logit | null)[];
      }
    | { readonly do: "rewind"; readonly sequence: number; readonly length: number }
    | { readonly do: "fork"; readonly sequence: number; readonly copy: number }
);

/** The likeliest token and its logit. */
export type Logit = readonly [number, number];

/** Replace bytes, remove the file, or take the file of another bundle. */
export interface Patch {
    readonly file: string;
    readonly offset?: number;
    readonly delete?: number;
    readonly insert?: string;
    readonly remove?: boolean;
    readonly from?: string;
}

export type Case = { readonly name: string; readonly bundle: string } & (
    | { readonly kind: "golden" }
    | (Generation & { readonly kind: "tokens"; readonly expected: readonly Expected[] })
    | (Omit<Generation, "prompts"> & {
          readonly kind: "text";
          readonly prompt: string;
          readonly prompt_ids: readonly number[];
          readonly expected: Expected;
      })
    | { readonly kind: "sequences"; readonly batch_size: number; readonly steps: readonly Step[] }
    | { readonly kind: "calls"; readonly calls: readonly (Generation & { readonly expected: readonly Expected[] })[] }
    | (Omit<Generation, "prompts"> & {
          readonly kind: "session";
          readonly session: string;
          readonly ids: readonly number[];
          readonly then: readonly number[];
          readonly expected: Expected;
      })
    | {
          readonly kind: "session-refused";
          readonly session: string;
          readonly patches: readonly Patch[];
          readonly error: ErrorKind;
      }
    | {
          readonly kind: "chat";
          readonly messages: readonly Message[];
          readonly tools?: readonly unknown[] | null;
          readonly add_generation_prompt?: boolean;
          readonly expected: { readonly text: string; readonly ids: readonly number[] };
          readonly error?: ErrorKind;
      }
    | (Generation & { readonly kind: "refused"; readonly text?: string; readonly error: ErrorKind })
    | {
          readonly kind: "damage";
          readonly prompts: readonly (readonly number[])[];
          readonly patches: readonly Patch[];
          readonly error: ErrorKind;
      }
);

export interface CasesFile {
    readonly version: number;
    readonly limits: Readonly<Record<string, number>>;
    readonly cases: readonly Case[];
}
