/**
 * The tokenizer of a bundle: byte-level BPE and byte-fallback BPE, from Hugging Face's tokenizer.json (docs/
 * bundle-format.md, "Text").
 *
 * Its parts are, in this order: added tokens, normalizer, pre-tokenizer, model, post-processor and decoder.
 */

import { MemoryError } from "../../errors.js";
import { type JsonValue, parseJson } from "../../format/json.js";
import { unicodeText } from "../checks.js";
import { AddedTokens, readAddedTokens } from "./added-tokens.js";
import { Bpe } from "./bpe.js";
import { findSet } from "./fields.js";
import { type Normalizer, readNormalizer } from "./normalizer.js";
import { type PostProcessor, readPostProcessor } from "./post-processor.js";
import { readPreTokenizer } from "./pre-tokenizer.js";
import { byteOfToken, readDecoder, type TokenDecoder } from "./token-decoder.js";

// UTF-16 units of a text, after the normalizer or the decoder. Engines limit a text to 2^29 units; each unit has up to
// three bytes, each of which is a character in byte-level BPE.
const mostUnits = 2 ** 26;

/** Gives the same ids and texts as Hugging Face's tokenizers library. */
export class Tokenizer {
    readonly #bpe: Bpe;
    readonly #normalizer: Normalizer;
    readonly #preTokenize: (text: string, isFirst: boolean) => string[];
    readonly #postProcessor: PostProcessor;
    readonly #decoder: TokenDecoder;
    readonly #added: AddedTokens;

    /**
     * Read a tokenizer.json. `where` names it in messages.
     *
     * @throws BundleError It is broken, or it has a part that this driver does not support; the message names the part.
     */
    static parse(bytes: Uint8Array, where: string): Tokenizer {
        return new Tokenizer(parseJson(bytes, where));
    }

    private constructor(root: JsonValue) {
        root.find("version")?.oneOf(["1.0"]);
        this.#bpe = new Bpe(root.get("model"));
        this.#normalizer = readNormalizer(findSet(root, "normalizer"));
        this.#preTokenize = readPreTokenizer(findSet(root, "pre_tokenizer"));
        this.#postProcessor = readPostProcessor(findSet(root, "post_processor"));
        this.#decoder = readDecoder(root.get("decoder"));
        const normalize = this.#normalizer.normalize;
        this.#added = new AddedTokens(readAddedTokens(root.find("added_tokens"), this.#bpe.vocabulary, normalize));
    }

    /**
     * Return the ids of a text.
     *
     * @throws RequestError The text has half a surrogate pair.
     * @throws MemoryError The text is too long.
     * @throws BundleError The tokenizer has no token for a part of the text, and no unknown token.
     */
    encode(text: string, addSpecialTokens: boolean): number[] {
        unicodeText("text", text);
        const most = Math.floor(mostUnits / this.#normalizer.growth);
        if (text.length > most)
            throw new MemoryError(`text: found ${text.length} characters, expected at most ${most}`);
        const ids = addSpecialTokens ? [...this.#postProcessor.before] : [];
        for (const part of this.#added.raw.split(text)) {
            if (part.token) ids.push(part.token.id);
            else this.#encodeText(part.text, part.start === 0, ids);
        }
        if (addSpecialTokens) ids.push(...this.#postProcessor.after);
        return ids;
    }

    /** Append the ids of a text between added tokens. */
    #encodeText(text: string, isFirst: boolean, ids: number[]): void {
        for (const part of this.#added.normalized.split(this.#normalizer.normalize(text))) {
            if (part.token) {
                ids.push(part.token.id);
                continue;
            }
            for (const word of this.#preTokenize(part.text, isFirst && part.start === 0)) this.#bpe.encode(word, ids);
        }
    }

    /**
     * Return the text of ids. Special tokens, and ids without a token, have no text.
     *
     * @throws MemoryError The text is too long.
     */
    decode(ids: readonly number[]): string {
        const tokens: string[] = [];
        let size = 0;
        for (const id of ids) {
            if (!this.isShown(id)) continue;
            const token = this.#token(id)!;
            tokens.push(token);
            size += token.length;
        }
        const most = Math.floor(mostUnits / this.#decoder.growth);
        if (size > most) throw new MemoryError(`ids: found ${size} characters in tokens, expected at most ${most}`);
        return this.#decoder.decode(tokens);
    }

    /** Whether an id has a token in the tokenizer. */
    has(id: number): boolean {
        return this.#token(id) !== undefined;
    }

    /** Whether the decoder gets the token of an id: it exists and is not hidden. */
    isShown(id: number): boolean {
        return this.has(id) && !this.#added.isHidden(id);
    }

    /** Whether `decode` gives text for an id: it has a token that is not hidden and not empty. */
    hasText(id: number): boolean {
        return this.isShown(id) && this.#token(id) !== "";
    }

    isSpecial(id: number): boolean {
        return this.#added.byId.get(id)?.special ?? false;
    }

    /** Whether a token is a byte token such as <0xE4>. */
    isByte(id: number): boolean {
        const token = this.#token(id);
        return token !== undefined && byteOfToken(token) !== undefined;
    }

    /** Return the ids of special tokens with this content. */
    specialIds(content: string): number[] {
        return this.#added.all.filter((token) => token.special && token.content === content).map((token) => token.id);
    }

    /** Return the token of an id as a decoder gets it. */
    #token(id: number): string | undefined {
        return this.#added.byId.get(id)?.text ?? this.#bpe.vocabulary.tokens.get(id);
    }
}
