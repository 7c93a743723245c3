/**
 * Run a tokenizer for tests/js/test_tokenizer.py: node tokenize.mjs TOKENIZER.JSON < REQUESTS > ANSWERS.
 *
 * Requests and answers are those of runtimes/native/tests/tokenize.cpp. A request is a letter, a size in bytes, a line
 * feed, and as many bytes: "e" (encode) and "E" (encode with special tokens): a text; "d" (decode): ids, each followed by
 * a space; "s" (stream): the prompt's ids, "|", and the new ids. Each answer is its size in bytes, a line feed, and the
 * ids, the text, or the pieces of text, which are separated by the byte 0xFF. The answer to a text that the tokenizer
 * cannot encode is "refused".
 */

import { readFileSync, writeFileSync } from "node:fs";

import { BundleError } from "../../src/errors.js";
import { TextStream } from "../../src/runtime/text-stream.js";
import { Tokenizer } from "../../src/runtime/tokenizer/tokenizer.js";

const separator = Buffer.of(0xff);

function readIds(text: string): number[] {
    return text.trim() === "" ? [] : text.trim().split(" ").map(Number);
}

function encode(tokenizer: Tokenizer, text: string, addSpecialTokens: boolean): string {
    try {
        return tokenizer
            .encode(text, addSpecialTokens)
            .map((id) => `${id} `)
            .join("");
    } catch (error) {
        if (error instanceof BundleError) return "refused";
        throw error;
    }
}

function streamPieces(tokenizer: Tokenizer, request: string): Buffer {
    const [prompt, ids] = request.split("|");
    const stream = new TextStream(tokenizer, readIds(prompt!));
    const pieces = readIds(ids!).map((id) => stream.push(id));
    return Buffer.concat([...pieces.flatMap((piece) => [Buffer.from(piece), separator]), Buffer.from(stream.finish())]);
}

function answer(tokenizer: Tokenizer, kind: string, request: string): Buffer {
    if (kind === "s") return streamPieces(tokenizer, request);
    return Buffer.from(kind === "d" ? tokenizer.decode(readIds(request)) : encode(tokenizer, request, kind === "E"));
}

const tokenizer = Tokenizer.parse(readFileSync(process.argv[2]!), "tokenizer.json");
const requests = readFileSync(0);
const answers: Buffer[] = [];
for (let at = 0; at < requests.length;) {
    const start = requests.indexOf("\n", at) + 1;
    const end = start + Number(requests.toString("utf8", at + 1, start - 1));
    const found = answer(tokenizer, requests.toString("utf8", at, at + 1), requests.toString("utf8", start, end));
    answers.push(Buffer.from(`${found.length}\n`), found);
    at = end;
}
writeFileSync(1, Buffer.concat(answers));
