/**
 * Renders chat templates for tests/js/test_chat_template.py. Each line of standard input is a JSON object with
 * `template`, `config` (the text of tokenizer_config.json), `messages`, `tools` and `prompt`. Each line of standard
 * output is a JSON object with `text`, or with `error`, the kind of an error, and its `message`.
 */

import { createInterface } from "node:readline";

import { MolkvError } from "../../src/errors.js";
import type { Message } from "../../src/options.js";
import { ChatTemplate } from "../../src/runtime/chat-template/chat-template.js";

interface Task {
    readonly template: string;
    readonly config: string;
    readonly messages: readonly Message[];
    readonly tools: readonly unknown[] | null;
    readonly prompt: boolean;
}

function result(task: Task): object {
    const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
    const file = { name: "chat_template.jinja", bytes: encode(task.template) };
    try {
        const template = ChatTemplate.parse(file, encode(task.config), file.name);
        const options = { tools: task.tools ?? undefined, addGenerationPrompt: task.prompt };
        return { text: template.render(task.messages, options) };
    } catch (error) {
        if (error instanceof MolkvError) {
            return { error: error.kind, message: error.message };
        }
        throw error;
    }
}

for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(result(JSON.parse(line) as Task))}\n`);
}
