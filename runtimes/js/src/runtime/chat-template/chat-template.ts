/** Chat templates: the text that a list of messages becomes (docs/bundle-format.md, "Chat template"). */

import { BundleError, MolkvError, RequestError } from "../../errors.js";
import { parseJson } from "../../format/json.js";
import type { ChatOptions, Message } from "../../options.js";
import type { Template } from "./ast.js";
import { length } from "./characters.js";
import { TemplateRefusal } from "./failures.js";
import { inputValue } from "./input.js";
import { Interpreter } from "./interpreter.js";
import { MAX_SOURCE, Work } from "./limits.js";
import { parseTemplate } from "./parser.js";
import { specialTokens, templateField, TOKENIZER_CONFIG } from "./tokenizer-config.js";
import { Dict, type Value } from "./values.js";

/** Names for the same field of a message: the model's reasoning. */
const REASONING = ["reasoning_content", "thinking", "reasoning"];

/** The limits of a rendering: characters and items of all results, and seconds. */
export interface Limits {
    readonly maxSize: number;
    readonly maxSeconds: number;
}

/** A chat template, which writes a list of messages as one text with the special tokens of a model. */
export class ChatTemplate {
    private constructor(
        private readonly template: Template,
        private readonly tokens: ReadonlyMap<string, string>,
        private readonly where: string,
    ) {}

    /**
     * Return the chat template of a bundle.
     *
     * @param file The file that the manifest names: chat_template.jinja or tokenizer_config.json.
     * @param tokenizerConfig The bytes of tokenizer_config.json; undefined: the bundle has none.
     * @param where The name of the file, for messages.
     * @throws BundleError A file is damaged, or the template is not valid or too large.
     */
    static parse(
        file: { readonly name: string; readonly bytes: Uint8Array },
        tokenizerConfig: Uint8Array | undefined,
        where: string,
    ): ChatTemplate {
        const isConfig = file.name === TOKENIZER_CONFIG;
        const bytes = isConfig ? file.bytes : tokenizerConfig;
        const config = bytes && parseJson(bytes, isConfig ? where : TOKENIZER_CONFIG);
        const tokens = config ? specialTokens(config) : new Map<string, string>();
        const source = isConfig ? templateField(config!) : decoded(file.bytes, where);
        const size = length(source);
        if (size > MAX_SOURCE) {
            throw new BundleError(`${where}: the chat template has ${size} characters, expected at most ${MAX_SOURCE}`);
        }
        try {
            return new ChatTemplate(parseTemplate(source), tokens, where);
        } catch (error) {
            throw new BundleError(`${where}: the chat template is not valid Jinja (${described(error)})`, {
                cause: error,
            });
        }
    }

    /**
     * Return the text of a conversation. Encode the text without adding special tokens.
     *
     * @param messages The messages, oldest first: values of JSON. A number that is an integer is an int of the template.
     * @param options The tools, and whether the text ends with the beginning of the model's answer (default true).
     * @param limits Other limits than those of docs/bundle-format.md, for tests.
     * @throws RequestError The messages or tools are not lists of objects of JSON, there is no message, or the template
     *     refuses the messages.
     * @throws BundleError The template has an error, or does too much work.
     */
    render(messages: readonly Message[], options: ChatOptions = {}, limits?: Limits): string {
        const { tools, addGenerationPrompt = true } = options;
        const given = objects("messages", messages).map(withReasoning);
        if (given.length === 0) {
            throw new RequestError("messages: found an empty list, expected one message or more");
        }
        const variables = new Map<string, Value>([
            ...this.tokens,
            ["messages", given],
            ["tools", tools === undefined ? null : objects("tools", tools)],
            ["documents", null],
            ["add_generation_prompt", addGenerationPrompt],
        ]);
        const interpreter = new Interpreter(this.template, variables, new Work(limits?.maxSize, limits?.maxSeconds));
        try {
            return interpreter.run();
        } catch (error) {
            if (error instanceof TemplateRefusal) {
                const message = oneLine(error.message);
                throw new RequestError(`${this.where}: the messages do not fit the chat template (${message})`);
            }
            const cause = `line ${interpreter.line}: ${described(error)}`;
            throw new BundleError(`${this.where}: the chat template failed (${cause})`, { cause: error });
        }
    }
}

function decoded(bytes: Uint8Array, where: string): string {
    try {
        return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
        throw new BundleError(`${where}: is not a chat template, expected text in UTF-8`);
    }
}

/** Return a text as one line of at most 200 characters. */
function oneLine(text: string): string {
    const line = text.split(/\s+/).join(" ").trim();
    return line.length > 200 ? `${line.slice(0, 200)}...` : line;
}

/** Return the message of an error. Engines report a stack that is full in different ways. */
function described(error: unknown): string {
    const message = error instanceof Error ? error.message : "";
    return /stack|recursion/i.test(message) && !(error instanceof MolkvError)
        ? oneLine(message.includes("recursion") ? message : "it nests too many operations or calls (recursion)")
        : oneLine(message);
}

/** Return a list of objects of the caller as values. */
function objects(name: string, values: unknown): Dict[] {
    if (!Array.isArray(values)) {
        throw new RequestError(
            `${name}: found ${values === null ? "null" : typeof values}, expected a list of objects`,
        );
    }
    return Array.from({ length: values.length }, (_, index) => {
        const where = `${name}[${index}]`;
        const value = inputValue(values[index], where);
        if (!(value instanceof Dict)) {
            throw new RequestError(`${where}: found another value, expected an object`);
        }
        return value;
    });
}

/**
 * Return a message as transformers passes it to a template: without fields that are null, and with the model's
 * reasoning by every name that templates read.
 */
function withReasoning(message: Dict): Dict {
    const fields = message.items().filter(([, value]) => value !== null);
    const given = new Map(fields);
    const name = REASONING.find((each) => given.has(each));
    if (name === undefined) {
        return new Dict(fields);
    }
    const reasoning = given.get(name)!;
    const thinking = given.get("thinking") ?? reasoning;
    return new Dict([["thinking", thinking], ...fields, ["reasoning_content", reasoning]]);
}
