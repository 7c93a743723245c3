import { readFileSync } from "node:fs";

import { describe, expect, it } from "vitest";

import { BundleError, MolkvError, RequestError } from "../../../src/errors.js";
import type { Message } from "../../../src/options.js";
import { ChatTemplate, type Limits } from "../../../src/runtime/chat-template/chat-template.js";

const CHAT: Message[] = [{ role: "user", content: "°C" }];
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

function parse(source: string, config?: unknown): ChatTemplate {
    const file = { name: "chat_template.jinja", bytes: bytes(source) };
    return ChatTemplate.parse(file, config === undefined ? undefined : bytes(JSON.stringify(config)), "bad.jinja");
}

function render(source: string, messages: readonly Message[] = CHAT, limits?: Limits): string {
    return parse(source).render(messages, {}, limits);
}

function errorOf(run: () => unknown): MolkvError {
    try {
        run();
    } catch (error) {
        if (error instanceof MolkvError) {
            return error;
        }
        throw error;
    }
    throw new Error("no error");
}

interface ChatCase {
    readonly name: string;
    readonly kind: string;
    readonly bundle: string;
    readonly messages: Message[];
    readonly tools?: unknown[] | null;
    readonly add_generation_prompt?: boolean;
    readonly expected?: { readonly text: string };
    readonly error?: string;
}

const CONFORMANCE = new URL("../../../../conformance/", import.meta.url);
const { cases } = JSON.parse(readFileSync(new URL("cases.json", CONFORMANCE), "utf-8")) as { cases: ChatCase[] };

describe("the conformance cases", () => {
    it.each(cases.filter((each) => each.kind === "chat"))("$name", (each) => {
        const folder = new URL(`bundles/${each.bundle}/`, CONFORMANCE);
        const read = (name: string): Uint8Array => new Uint8Array(readFileSync(new URL(name, folder)));
        const file = { name: "chat_template.jinja", bytes: read("chat_template.jinja") };
        const template = ChatTemplate.parse(file, read("tokenizer_config.json"), file.name);
        const options = { tools: each.tools ?? undefined, addGenerationPrompt: each.add_generation_prompt };
        if (each.error !== undefined) {
            expect(errorOf(() => template.render(each.messages, options)).kind).toBe(each.error);
        } else {
            expect(template.render(each.messages, options)).toBe(each.expected!.text);
        }
    });
});

describe("the file of the template", () => {
    const inConfig = (config: unknown): ChatTemplate =>
        ChatTemplate.parse(
            { name: "tokenizer_config.json", bytes: bytes(JSON.stringify(config)) },
            undefined,
            "tokenizer_config.json",
        );

    it("is the field of tokenizer_config.json, or the template named default of a list", () => {
        const template = "{{ bos_token }}!";
        expect(inConfig({ chat_template: template, bos_token: { content: "<s>" } }).render(CHAT)).toBe("<s>!");
        const list = [
            { name: "default", template: "first" },
            { name: "tool_use", template: "no" },
            { name: "default", template },
        ];
        expect(inConfig({ chat_template: list, bos_token: "<s>" }).render(CHAT)).toBe("<s>!");
    });

    it.each([[null], [5], [[]], [[{ name: "rag", template: "x" }]], [[{ name: "default" }]], [["default"]]])(
        "%j is refused",
        (field) => {
            expect(() => inConfig({ chat_template: field })).toThrow(BundleError);
        },
    );

    it("is refused if it is not UTF-8, not JSON or too large", () => {
        const file = (name: string, content: Uint8Array): ChatTemplate =>
            ChatTemplate.parse({ name, bytes: content }, undefined, name);
        expect(() => file("chat_template.jinja", new Uint8Array([255]))).toThrow(/expected text in UTF-8/);
        expect(() => file("tokenizer_config.json", bytes("["))).toThrow(BundleError);
        expect(() => file("tokenizer_config.json", bytes("[]"))).toThrow(BundleError);
        const twice = bytes('{"chat_template": "a", "chat_template": "a"}');
        expect(() => file("tokenizer_config.json", twice)).toThrow(/a second time/);
        expect(render("a".repeat(2 ** 18))).toHaveLength(2 ** 18);
        expect(() => parse("a".repeat(2 ** 18 + 1))).toThrow(/has 262145 characters, expected at most 262144/);
    });

    it("gives the special tokens of tokenizer_config.json", () => {
        const config = {
            bos_token: "<s>",
            eos_token: { content: "</s>" },
            pad_token: null,
            add_bos_token: true,
            extra_special_tokens: { image_token: "<img>", bos_token: "<b>" },
            additional_special_tokens: ["<x>"],
        };
        const source = "{{ [bos_token, eos_token, image_token, pad_token is defined, add_bos_token is defined] }}";
        expect(parse(source, config).render(CHAT)).toBe("['<b>', '</s>', '<img>', False, False]");
    });
});

describe("messages", () => {
    it("have no fields that are null, and their reasoning by every name", () => {
        const message = { role: "assistant", content: null, reasoning: "a", x: undefined } as unknown as Message;
        expect(render("{{ messages }}", [message])).toBe(
            "[{'thinking': 'a', 'role': 'assistant', 'reasoning': 'a', 'reasoning_content': 'a'}]",
        );
        const both = { role: "x", content: "", thinking: "t", reasoning_content: "r" };
        expect(render("{{ messages[0] | tojson }}", [both])).toBe(
            '{"thinking": "t", "role": "x", "content": "", "reasoning_content": "r"}',
        );
    });

    it.each<[string, unknown]>([
        ["no message", []],
        ["a text", "hello"],
        ["a message", CHAT[0]],
        ["a text in the list", ["hello"]],
        ["a hole", new Array(1)],
        ["bytes", [{ role: "x", content: new Uint8Array(1) }]],
        ["a function", [{ role: "x", content: () => 1 }]],
        ["NaN", [{ role: "x", content: NaN }]],
    ])("are refused if they are %s", (_, messages) => {
        expect(() => render("x", messages as Message[])).toThrow(RequestError);
    });

    it("are refused if they contain themselves", () => {
        const message: Record<string, unknown> = { role: "x" };
        message.content = message;
        expect(() => render("x", [message as unknown as Message])).toThrow(RequestError);
    });

    it("with names of JavaScript's properties are only data", () => {
        const message = JSON.parse('{"role": "x", "content": "", "__proto__": {"a": 1}, "constructor": 2}') as Message;
        expect(render("{{ messages[0]['__proto__'] }}{{ messages[0].constructor }}", [message])).toBe("{'a': 1}2");
    });

    it("that the template refuses give its message", () => {
        const error = errorOf(() => render("{{ raise_exception('two\nlines') }}"));
        expect(error).toBeInstanceOf(RequestError);
        expect(error.message).toBe("bad.jinja: the messages do not fit the chat template (two lines)");
    });
});

const BIG = "'a' * 10**7";
const REPEAT = "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = ITEM %}{% endfor %}";
const LOOP = "{% for x in range(99999) %}";
const TOO_LARGE = /its texts and lists together have more than 16777216 characters and items/;

describe("a hostile template", () => {
    it.each<[string, RegExp]>([
        ["{{ ''.__class__.__mro__ }}", /the attribute __mro__ is not supported/],
        ["{{ messages.append(1) }}", /access to attribute 'append' of 'list' object is unsafe/],
        ["{{ messages[0].update({}) }}", /access to attribute 'update' of 'dict' object is unsafe/],
        ["{{ dict.update(messages[0], role='x') }}", /attribute update/],
        ["{{ ''.constructor.constructor('return 1')() }}", /has no attribute 'constructor'/],
        ["{{ messages.push(1) }}", /has no attribute 'push'/],
        ["{{ range.constructor('return 1')() }}", /attribute constructor/],
        ["{{ '{0.__class__.__mro__}'.format(1) }}", /the attribute __mro__ is not supported/],
        ["\n{{ nothing(1) }}", /\(line 2: 'nothing' is undefined\)/],
        ["{{ lipsum(10**9) }}", /'lipsum' is undefined/],
        ["{{ 1 / 0 }}", /division by zero/],
        ["{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", /recursion/],
        ["{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", /recursion/],
        ["{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", /recursion/],
        [`{% set ns = namespace(x=1) %}${LOOP}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}`, /recursion/],
        [REPEAT.replace("ITEM", "ns.x ~ ns.x"), TOO_LARGE],
        [REPEAT.replace("ITEM", "ns.x|string|replace('1', '11')"), TOO_LARGE],
        [REPEAT.replace("ITEM", "ns.x * 2").replace("=1", "=[1]"), TOO_LARGE],
        [REPEAT.replace("ITEM", "(ns.x + 1) * (ns.x + 1)"), /it computes with integers of more than 65536 bits/],
        [`{% for i in range(999) %}${"a".repeat(99999)}{% endfor %}`, TOO_LARGE],
        [`{% for i in range(99) %}{% set x = ${BIG} %}{% endfor %}`, TOO_LARGE],
        ["{{ 'x' * 10**9 }}", TOO_LARGE],
        ["{{ 10**9 * [1] }}", TOO_LARGE],
        ["{{ 2 ** (10**9) }}", /it computes with integers of more than 65536 bits/],
        ["{{ '%999999999d' % 1 }}", /with a width above 9999/],
        ["{{ '%*d' % (10**9, 1) }}", /with a width above 9999/],
        ["{{ '{:999999999}'.format(1) }}", /with a width above 9999/],
        ["{{ '{:{}}'.format(1, 10**9) }}", /with a width above 9999/],
        ["{{ 'a' | center(10**9) }}", /center: found the argument 1000000000, expected at most 9999/],
        ["{{ 'a'.zfill(1000000000) }}", /zfill: found the argument 1000000000, expected at most 9999/],
        ["{{ 1 | round(-10**9) }}", /round: found the argument -1000000000, expected at most 9999/],
        ["{{ [1] | slice(10**9) | list }}", /the filter slice is not supported by this driver/],
        ["{{ messages | tojson(indent=10**9) }}", /tojson: found the argument 1000000000, expected at most 9999/],
        ["{{ 'a' | urlize }}", /the filter urlize is not supported by this driver/],
    ])("%s gives one clear error", (source, message) => {
        const error = errorOf(() => render(source, CHAT, { maxSize: 2 ** 24, maxSeconds: 60 }));
        expect(error).toBeInstanceOf(BundleError);
        expect(error.message).toMatch(/^bad\.jinja: the chat template failed \(/);
        expect(error.message).toMatch(message);
        expect(error.message.length).toBeLessThan(400);
    });

    it.each([
        `${LOOP.repeat(3)}${"{% endfor %}".repeat(3)}`,
        `{% set text = 'a' * 10**7 %}${LOOP}{% if 'ab' in text %}{% endif %}{% endfor %}`,
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
        `${LOOP}{% if range(9999) | map('string') | select('none') | list %}{% endif %}{% endfor %}`,
        `${LOOP}{% if range(9999) | sum %}{% endif %}{% endfor %}`,
    ])("%s is stopped", (source) => {
        const limits = { maxSize: 2 ** 60, maxSeconds: 0.05 };
        expect(() => render(source, CHAT, limits)).toThrow(/it takes more than 0\.05 seconds\)$/);
    });

    it.each<[string, RegExp]>([
        ["{% if x %}", /line 1: Unexpected end of template/],
        ["\n\n{{ x | nofilter }}", /line 3: No filter named 'nofilter'/],
        [`{{ ${"(".repeat(5000)}1${")".repeat(5000)} }}`, /recursion/],
        [`{{ ${"1 + ".repeat(5000)}1 }}`, /recursion/],
        [`{{ ${"-".repeat(5000)}1 }}`, /recursion/],
        [`{{ ${"not ".repeat(5000)}1 }}`, /recursion/],
        [`{{ x${".a".repeat(5000)} }}`, /recursion/],
        ["{% if 1 %}".repeat(9999), /recursion/],
        [`{{ ${"9".repeat(5000)} }}`, /4300 digits/],
        ["{% continue %}", /'continue' not properly in loop/],
        ["{#".repeat(9999), /line 1: Missing end of comment tag/],
        ["{% block x %}{% endblock %}", /the tag block is not supported by this driver/],
    ])("%s is not compiled", (source, message) => {
        const error = errorOf(() => parse(source));
        expect(error).toBeInstanceOf(BundleError);
        expect(error.message).toMatch(message);
    });

    it("of white space is read fast", () => {
        expect(render(" ".repeat(2 ** 18))).toHaveLength(2 ** 18);
        expect(render(`${" ".repeat(2 ** 17)}{%- if 1 %}x{% endif %}`)).toBe("x");
    });

    it("does not change another rendering", () => {
        const template = parse("{{ messages[0].content ~ '' }}");
        const message = { role: "x", content: "a".repeat(300) };
        for (let count = 0; count < 9; count += 1) {
            expect(template.render([message], {}, { maxSize: 1000, maxSeconds: 5 })).toBe(message.content);
        }
    });
});

describe("an expression", () => {
    // The expected texts are those of Jinja 3.1 on Python 3.
    it.each([
        ["{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}", "TrueFalse"],
        ["{{ 'a' ~ 1 + 'b' if false else 2 ** 3 ** 2 }}", "64"],
        ["{{ 1e16 }} {{ 1e15 }} {{ 0.00001 }} {{ 7 // -2 }} {{ -7 % 3 }}", "1e+16 1000000000000000.0 1e-05 -4 2"],
        ["{{ 2.5 | round }} {{ 2.675 | round(2) }} {{ '%.0f' % 0.5 }}", "2.0 2.67 0"],
        ["{{ ['it\\'s', 'é\\n', none, true] }}", "[\"it's\", 'é\\n', None, True]"],
        ["{{ {'é': [1, 1.0]} | tojson(ensure_ascii=true, indent=1) }}", '{\n "\\u00e9": [\n  1,\n  1.0\n ]\n}'],
        ["{{ '🙂a' | length }}{{ '🙂a'[::-1] }}", "2a🙂"],
        ["  {% if true %}\n x\n  {%- endif +%}\ny\n", " x\ny"],
        ["{% for i in [1, 2] %}{{ x }}{% set x = i %}{% endfor %}{{ x is defined }}", "False"],
        ["{% for i in [1] %}{% continue %}{% else %}else{% endfor %}", "else"],
        ["{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a is defined }}", "1False"],
        ["{{ strftime_now('%Y') | int > 2000 }}{{ dict.fromkeys('ab', 0) }}", "True{'a': 0, 'b': 0}"],
    ])("%s", (source, expected) => {
        expect(render(source)).toBe(expected);
    });
});
