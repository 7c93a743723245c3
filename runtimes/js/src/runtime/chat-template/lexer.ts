/** The tokens of a template, as Jinja's lexer with `trim_blocks` and `lstrip_blocks` makes them. */

import { isSpace, SPACE } from "./characters.js";
import { TemplateFailure, unsupported } from "./failures.js";
import { MAX_DIGITS } from "./limits.js";

export type TokenKind =
    | "text"
    | "blockBegin"
    | "blockEnd"
    | "printBegin"
    | "printEnd"
    | "name"
    | "string"
    | "integer"
    | "float"
    | "operator"
    | "end";

export interface Token {
    readonly kind: TokenKind;
    /** The text of the token; of a string its value. */
    readonly text: string;
    readonly line: number;
}

const BEGIN = /\{[{%#]/g;
const RAW_BEGIN = new RegExp(`\\{%([-+]?)[${SPACE}]*raw[${SPACE}]*(?:-%\\}[${SPACE}]*|%\\})`, "y");
const RAW_END = new RegExp(`\\{%([-+]?)[${SPACE}]*endraw[${SPACE}]*(?:\\+%\\}|-%\\}[${SPACE}]*|%\\}\\n?)`, "g");
const BLOCK_END = new RegExp(`\\+%\\}|-%\\}[${SPACE}]*|%\\}\\n?`, "y");
const PRINT_END = new RegExp(`-\\}\\}[${SPACE}]*|\\}\\}`, "y");
const SPACES = new RegExp(`[${SPACE}]+`, "y");
const FLOAT = /(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)/iy;
const INTEGER = /0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*/iy;
const NAME = /[\p{ID_Continue}_]+/uy;
const NAME_START = /^[\p{ID_Start}_]/u;
const OPERATOR = /\/\/|\*\*|==|!=|>=|<=|[-+/*%~[\](){}><=.:|,;]/y;
const CLOSING: Readonly<Record<string, string>> = { "(": ")", "[": "]", "{": "}" };
const ESCAPES: Readonly<Record<string, string>> = {
    "\n": "",
    "\\": "\\",
    "'": "'",
    '"': '"',
    a: "\x07",
    b: "\b",
    f: "\f",
    n: "\n",
    r: "\r",
    t: "\t",
    v: "\v",
};

/**
 * Return the tokens of a template; the last one is of kind "end".
 *
 * @throws TemplateFailure The text is not a template. The message begins with "line N: ".
 */
export function tokenize(source: string): Token[] {
    return new Lexer(source.replace(/\r\n|\r/g, "\n").replace(/\n$/, "")).run();
}

class Lexer {
    private readonly tokens: Token[] = [];
    private at = 0;
    private line = 1;
    private countedTo = 0;
    /** Whether the text that follows begins a line. */
    private lineStarts = true;

    constructor(private readonly source: string) {}

    run(): Token[] {
        while (this.at < this.source.length) {
            BEGIN.lastIndex = this.at;
            const found = BEGIN.exec(this.source);
            if (found === null) {
                this.text(this.source.slice(this.at));
                this.at = this.source.length;
            } else {
                this.tag(found.index, found[0]);
            }
        }
        this.push("end", "");
        return this.tokens;
    }

    private fail(message: string): never {
        throw new TemplateFailure(`line ${this.currentLine()}: ${message}`);
    }

    private currentLine(): number {
        for (; this.countedTo < this.at; this.countedTo += 1) {
            this.line += this.source[this.countedTo] === "\n" ? 1 : 0;
        }
        return this.line;
    }

    private push(kind: TokenKind, text: string): void {
        this.tokens.push({ kind, text, line: this.currentLine() });
    }

    private text(text: string): void {
        if (text !== "") {
            this.push("text", text);
        }
    }

    /** Return the match of a sticky expression at the current place, after moving behind it. */
    private take(expression: RegExp): RegExpExecArray | null {
        expression.lastIndex = this.at;
        const found = expression.exec(this.source);
        if (found !== null) {
            this.at = expression.lastIndex;
        }
        return found;
    }

    /** Return the text before a tag without the white space that the tag removes. */
    private before(start: number, sign: string, isPrint: boolean): string {
        const text = this.source.slice(this.at, start);
        let end = text.length;
        if (sign === "-") {
            while (end > 0 && isSpace(text[end - 1]!)) {
                end -= 1;
            }
            return text.slice(0, end);
        }
        const lineStart = text.lastIndexOf("\n") + 1;
        if (sign === "+" || isPrint || (lineStart === 0 && !this.lineStarts)) {
            return text;
        }
        while (end > lineStart && isSpace(text[end - 1]!)) {
            end -= 1;
        }
        return end === lineStart ? text.slice(0, lineStart) : text;
    }

    private tag(start: number, opening: string): void {
        RAW_BEGIN.lastIndex = start;
        const raw = RAW_BEGIN.exec(this.source);
        const sign = raw === null ? (this.source[start + 2] ?? "") : raw[1]!;
        const hasSign = sign === "-" || sign === "+";
        this.text(this.before(start, sign, opening === "{{"));
        this.at = start + 2 + (hasSign ? 1 : 0);
        if (raw !== null) {
            this.at = RAW_BEGIN.lastIndex;
            this.raw();
        } else if (opening === "{#") {
            this.comment();
        } else {
            const isPrint = opening === "{{";
            this.push(isPrint ? "printBegin" : "blockBegin", opening);
            this.inside(isPrint);
        }
        this.lineStarts = this.source[this.at - 1] === "\n";
    }

    private raw(): void {
        this.lineStarts = this.source[this.at - 1] === "\n";
        RAW_END.lastIndex = this.at;
        const end = RAW_END.exec(this.source);
        if (end === null) {
            this.fail("Missing end of raw directive");
        }
        this.text(this.before(end.index, end[1]!, false));
        this.at = RAW_END.lastIndex;
    }

    private comment(): void {
        const start = this.at;
        const end = this.source.indexOf("#}", start);
        if (end < 0) {
            this.fail("Missing end of comment tag");
        }
        const sign = end > start ? this.source[end - 1] : "";
        this.at = end + 2;
        if (sign === "-") {
            this.take(SPACES);
        } else if (sign !== "+" && this.source[this.at] === "\n") {
            this.at += 1;
        }
    }

    /** Read the tokens of a tag until its end. */
    private inside(isPrint: boolean): void {
        const open: string[] = [];
        while (this.at < this.source.length) {
            if (open.length === 0) {
                const start = this.at;
                if (this.take(isPrint ? PRINT_END : BLOCK_END) !== null) {
                    const after = this.at;
                    this.at = start;
                    this.push(isPrint ? "printEnd" : "blockEnd", isPrint ? "}}" : "%}");
                    this.at = after;
                    return;
                }
            }
            this.token(open);
        }
    }

    private token(open: string[]): void {
        if (this.take(SPACES) !== null) {
            return;
        }
        const first = this.source[this.at]!;
        if (/\d/.test(first)) {
            const float = this.source[this.at - 1] === "." ? null : this.take(FLOAT);
            const number = float ?? this.take(INTEGER)!;
            if (float === null && number[0].length > MAX_DIGITS) {
                this.fail(`an integer has more than ${MAX_DIGITS} digits`);
            }
            this.push(float === null ? "integer" : "float", number[0].replaceAll("_", ""));
        } else if (first === "'" || first === '"') {
            this.string(first);
        } else {
            this.nameOrOperator(open);
        }
    }

    private nameOrOperator(open: string[]): void {
        const name = this.take(NAME);
        if (name !== null) {
            if (!NAME_START.test(name[0])) {
                this.fail(`Invalid character in identifier "${name[0]}"`);
            }
            this.push("name", name[0]);
            return;
        }
        const operator = this.take(OPERATOR)?.[0];
        if (operator === undefined) {
            this.fail(`unexpected char "${String.fromCodePoint(this.source.codePointAt(this.at) ?? 0)}"`);
        }
        const closing = CLOSING[operator];
        if (closing !== undefined) {
            open.push(closing);
        } else if (operator === ")" || operator === "]" || operator === "}") {
            const expected = open.pop();
            if (expected !== operator) {
                this.fail(`unexpected "${operator}"${expected === undefined ? "" : `, expected "${expected}"`}`);
            }
        }
        this.push("operator", operator);
    }

    private string(quote: string): void {
        let end = this.at + 1;
        while (end < this.source.length && this.source[end] !== quote) {
            end += this.source[end] === "\\" ? 2 : 1;
        }
        if (end >= this.source.length) {
            this.fail(`a string that begins with ${quote} has no end`);
        }
        this.push("string", this.unescape(this.source.slice(this.at + 1, end)));
        this.at = end + 1;
    }

    private unescape(text: string): string {
        return text.replace(/\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|[0-7]{1,3}|[^])/g, (escape): string => {
            const kind = escape[1]!;
            if (escape.length > 2 && kind !== "\\" && /[xuU]/.test(kind)) {
                return this.codePoint(parseInt(escape.slice(2), 16));
            }
            if (/[0-7]/.test(kind)) {
                return String.fromCodePoint(parseInt(escape.slice(1), 8));
            }
            if (/[xuU]/.test(kind)) {
                this.fail(`a string has the truncated escape \\${kind}`);
            }
            if (kind === "N" || kind > "\x7f") {
                unsupported(`the escape \\${kind} of a string`);
            }
            return ESCAPES[kind] ?? escape;
        });
    }

    private codePoint(value: number): string {
        return value > 0x10ffff ? this.fail("a string has an escape above 10ffff") : String.fromCodePoint(value);
    }
}
