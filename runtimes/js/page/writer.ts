/** Continues prompts and chats with one session, which keeps what the next text has in common with the last one. */

import type { Model, Session } from "../src/api.js";
import type { GenerateOptions, Message, Token } from "../src/options.js";

/** What a call is to continue. */
export type Prompt =
    { readonly text: string } | { readonly ids: readonly number[] } | { readonly messages: readonly Message[] };

/** A token, and the ids whose records were read since the token before it. */
export interface Written {
    readonly token: Token;
    readonly read: readonly number[];
}

/** Writes texts with one session of a model. */
export class Writer {
    readonly #model: Model;
    #session: Session | undefined;

    constructor(model: Model) {
        this.#model = model;
    }

    /** Yield the tokens that continue a prompt. */
    async *write(prompt: Prompt, options: GenerateOptions): AsyncGenerator<Written> {
        const ids = await this.#ids(prompt);
        this.#session ??= await this.#model.session();
        const session = this.#session;
        const kept = commonLength(session.ids, ids);
        const added = ids.slice(kept);
        // A session reads the record of its last token when it computes the next one.
        let read = kept === session.ids.length ? [...session.ids.slice(-1), ...added] : added;
        if (kept < session.ids.length) await session.rewind(kept);
        for await (const token of session.stream(added, options)) {
            yield { token, read };
            read = [token.id];
        }
    }

    async #ids(prompt: Prompt): Promise<readonly number[]> {
        if ("ids" in prompt) return prompt.ids;
        if ("text" in prompt) return await this.#model.encode(prompt.text);
        return await this.#model.encode(await this.#model.renderChat(prompt.messages), { addSpecialTokens: false });
    }
}

/** Return how many ids of an old text a new text can keep. At least the last id of the new text is computed again. */
function commonLength(old: readonly number[], ids: readonly number[]): number {
    const most = Math.min(old.length, ids.length - 1);
    let length = 0;
    while (length < most && old[length] === ids[length]) length += 1;
    return Math.max(0, length);
}
