/** Byte-pair encoding: a word to the ids of its tokens. The order of merges is that of the tokenizers library. */

import { BundleError } from "../../errors.js";
import { type JsonValue, quoted } from "../../format/json.js";
import { findSet, flag, typeOf } from "./fields.js";

const largestId = 2 ** 31 - 1;
const mostEntries = 2 ** 23; // tokens, and merges: a Map holds twice as many

/** The tokens of a model. A place is the index of a token in the file: ids may have gaps, places have none. */
export class Vocabulary {
    readonly ids: number[] = [];
    readonly places = new Map<string, number>();
    readonly tokens = new Map<number, string>(); // by id

    constructor(object: JsonValue) {
        const fields = object.fields();
        if (fields.size > mostEntries) throw object.error(`${fields.size} tokens`, `at most ${mostEntries}`);
        for (const [token, field] of fields) {
            const id = field.integer(0, largestId);
            if (this.tokens.has(id)) throw object.error(`the id ${id} a second time`, "each id once");
            this.places.set(token, this.ids.length);
            this.tokens.set(id, token);
            this.ids.push(id);
        }
    }

    id(token: string): number | undefined {
        const place = this.places.get(token);
        return place === undefined ? undefined : this.ids[place];
    }
}

/** A heap of numbers; `pop` removes the smallest one. */
class Heap {
    readonly #items: number[] = [];

    push(item: number): void {
        const items = this.#items;
        let at = items.length;
        while (at > 0) {
            const parent = (at - 1) >> 1;
            if (items[parent]! <= item) break;
            items[at] = items[parent]!;
            at = parent;
        }
        items[at] = item;
    }

    pop(): number | undefined {
        const items = this.#items;
        const first = items[0];
        const last = items.pop();
        if (last === undefined || items.length === 0) return first;
        let at = 0;
        for (let child = 1; child < items.length; child = 2 * at + 1) {
            if (child + 1 < items.length && items[child + 1]! < items[child]!) child++;
            if (items[child]! >= last) break;
            items[at] = items[child]!;
            at = child;
        }
        items[at] = last;
        return first;
    }
}

/** Check the parts of a model that change its results and that this driver does not support. */
function checkModel(model: JsonValue): void {
    if (model.find("type")) typeOf(model, ["BPE"]);
    for (const name of ["continuing_subword_prefix", "end_of_word_suffix"]) {
        const affix = findSet(model, name);
        if (affix && affix.text() !== "") throw affix.error(quoted(affix.text()), "null or an empty text");
    }
    const dropout = findSet(model, "dropout");
    if (dropout && dropout.number() !== 0) throw dropout.error("a dropout", "null or 0");
}

function partsOfMerge(merge: JsonValue): [string, string] {
    const isList = merge.type === "list";
    const parts = isList ? merge.list().map((part) => part.text()) : merge.text().split(" ");
    if (parts.length === 2) return [parts[0]!, parts[1]!];
    throw isList
        ? merge.error(`${parts.length} parts`, "2 parts")
        : merge.error(quoted(merge.text()), "two tokens with one space between them");
}

/** The model of a tokenizer.json of type "BPE". The time for a word of n characters is O(n log n). */
export class Bpe {
    readonly vocabulary: Vocabulary;
    readonly #ignoreMerges: boolean;
    readonly #fuseUnknown: boolean;
    readonly #unknown: { readonly token: string; readonly place: string } | undefined;
    readonly #bytePlaces: readonly (number | undefined)[] | undefined; // with byte_fallback only
    readonly #ranks = new Map<number, number>(); // left place * size + right place -> rank
    readonly #joined: number[] = []; // the place of the joined token, by rank

    /** Read the object `model`. Throws if it has another type, dropout, or prefixes or suffixes of tokens. */
    constructor(model: JsonValue) {
        checkModel(model);
        this.vocabulary = new Vocabulary(model.get("vocab"));
        this.#ignoreMerges = flag(model, "ignore_merges", false);
        this.#fuseUnknown = flag(model, "fuse_unk", false);
        const unknown = findSet(model, "unk_token");
        this.#unknown = unknown && { token: unknown.text(), place: unknown.place };
        if (flag(model, "byte_fallback", false)) {
            this.#bytePlaces = Array.from({ length: 256 }, (_, byte) =>
                this.vocabulary.places.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
            );
        }
        this.#readMerges(model.get("merges"));
    }

    #readMerges(list: JsonValue): void {
        const merges = list.list();
        if (merges.length > mostEntries) throw list.error(`${merges.length} merges`, `at most ${mostEntries}`);
        const { places } = this.vocabulary;
        for (const merge of merges) {
            if (merge.type === "text" && merge.text().startsWith("#version")) continue;
            const [left, right] = partsOfMerge(merge);
            const placeOf = (token: string): number => {
                const place = places.get(token);
                if (place !== undefined) return place;
                throw merge.error(quoted(token), "a token of the vocabulary");
            };
            const [leftPlace, rightPlace, joined] = [placeOf(left), placeOf(right), placeOf(left + right)];
            // Of a merge that occurs several times, the last one counts.
            this.#ranks.set(leftPlace * places.size + rightPlace, this.#joined.length);
            this.#joined.push(joined);
        }
    }

    /**
     * Append the ids of a word. Throws a BundleError if the word has a part without a token, and the unknown token of
     * the model is not in its vocabulary.
     */
    encode(word: string, ids: number[]): void {
        const whole = this.#ignoreMerges && word !== "" ? this.vocabulary.id(word) : undefined;
        if (whole !== undefined) {
            ids.push(whole);
            return;
        }
        for (const place of this.#merge(this.#characters(word))) {
            if (place >= 0) ids.push(this.vocabulary.ids[place]!);
        }
    }

    /**
     * Return the places of the characters of a word. As in the library, bytes do not end a fused unknown token: the
     * unknown token is added after them.
     */
    #characters(word: string): number[] {
        const places: number[] = [];
        let isUnknown = false; // whether an unknown token is due
        const endUnknown = (): void => {
            if (isUnknown) places.push(this.#unknownPlace());
            isUnknown = false;
        };
        for (const character of word) {
            const place = this.vocabulary.places.get(character);
            if (place !== undefined) {
                endUnknown();
                places.push(place);
            } else if (!this.#appendBytes(character, places) && this.#unknown) {
                if (!this.#fuseUnknown) endUnknown();
                isUnknown = true;
            }
        }
        endUnknown();
        return places;
    }

    #appendBytes(character: string, places: number[]): boolean {
        if (!this.#bytePlaces) return false;
        const found: number[] = [];
        for (const byte of new TextEncoder().encode(character)) {
            const place = this.#bytePlaces[byte];
            if (place === undefined) return false;
            found.push(place);
        }
        places.push(...found);
        return true;
    }

    #unknownPlace(): number {
        const { token, place } = this.#unknown!;
        const found = this.vocabulary.places.get(token);
        if (found !== undefined) return found;
        throw new BundleError(
            `${place}: found ${quoted(token)}, expected a token of the vocabulary, ` +
                "since a text has a character without a token",
        );
    }

    /** Merge the tokens of a word in place: the merge of the lowest rank first, of equal ranks the first place. */
    #merge(places: number[]): number[] {
        const count = places.length;
        const next = Int32Array.from(places, (_, at) => at + 1);
        const previous = Int32Array.from(places, (_, at) => at - 1);
        const rankAt = (at: number): number | undefined =>
            next[at]! < count
                ? this.#ranks.get(places[at]! * this.vocabulary.places.size + places[next[at]!]!)
                : undefined;
        const heap = new Heap(); // rank * count + place in the word: below 2^53, since a text has at most 2^28 units
        const add = (at: number): void => {
            const rank = rankAt(at);
            if (rank !== undefined) heap.push(rank * count + at);
        };
        for (let at = 0; at < count; at++) add(at);
        for (let best = heap.pop(); best !== undefined; best = heap.pop()) {
            const at = best % count;
            const joined = this.#joined[(best - at) / count]!;
            if (places[at]! < 0) continue; // it is part of an earlier token
            const rank = rankAt(at);
            if (rank === undefined || this.#joined[rank] !== joined) continue; // an earlier merge changed this pair
            const right = next[at]!;
            places[at] = joined;
            places[right] = -1;
            next[at] = next[right]!;
            if (next[at] < count) previous[next[at]] = at;
            if (previous[at]! >= 0) add(previous[at]!);
            add(at);
        }
        return places;
    }
}
