/** The parser of expressions, with Jinja's grammar and precedence. */

import type { CallArguments, Expression, FilterExpression, Slice } from "./ast.js";
import { TemplateFailure, unsupported } from "./failures.js";
import type { Token, TokenKind } from "./lexer.js";
import { MAX_DEPTH } from "./limits.js";

const COMPARISONS = new Set(["==", "!=", "<", "<=", ">", ">="]);
const CONSTANTS: ReadonlyMap<string, boolean | null> = new Map([
    ["true", true],
    ["True", true],
    ["false", false],
    ["False", false],
    ["none", null],
    ["None", null],
]);
const MAX_NESTING = 200;
const NO_ARGUMENTS: CallArguments = { positional: [], keywords: [] };

export class ExpressionParser {
    private at = 0;
    private depth = 0;

    constructor(private readonly tokens: readonly Token[]) {}

    protected get current(): Token {
        return this.tokens[this.at]!;
    }

    protected next(): Token {
        const token = this.current;
        if (token.kind !== "end") {
            this.at += 1;
        }
        return token;
    }

    protected fail(message: string, line = this.current.line): never {
        throw new TemplateFailure(`line ${line}: ${message}`);
    }

    protected is(kind: TokenKind, text?: string): boolean {
        return this.current.kind === kind && (text === undefined || this.current.text === text);
    }

    private nextIs(kind: TokenKind, text: string): boolean {
        const token = this.tokens[this.at + 1];
        return token?.kind === kind && token.text === text;
    }

    protected skip(kind: TokenKind, text: string): boolean {
        const found = this.is(kind, text);
        if (found) {
            this.next();
        }
        return found;
    }

    protected expect(kind: TokenKind, text?: string): Token {
        if (!this.is(kind, text)) {
            this.fail(`expected ${text ?? kind}, found ${this.described()}`);
        }
        return this.next();
    }

    protected described(): string {
        return this.is("end") ? "the end of the template" : `"${this.current.text}"`;
    }

    /** Run a part of the parser one level deeper. */
    protected nested<T>(parse: () => T): T {
        this.depth += 1;
        if (this.depth > MAX_NESTING) {
            this.fail(`it nests more than ${MAX_NESTING} statements and expressions (recursion)`);
        }
        const result = parse();
        this.depth -= 1;
        return result;
    }

    protected expression(): Expression {
        return this.nested(() => this.condition());
    }

    /** Parse expressions with commas between them, which are a tuple. */
    protected tuple(options: { condition?: boolean; parentheses?: boolean; end?: string } = {}): Expression {
        const items: Expression[] = [];
        let isTuple = false;
        do {
            if (this.isTupleEnd(options.end)) {
                break;
            }
            items.push(options.condition === false ? this.nested(() => this.or()) : this.expression());
            isTuple ||= this.is("operator", ",");
        } while (this.skip("operator", ","));
        if (!isTuple && items.length === 1) {
            return items[0]!;
        }
        if (!isTuple && options.parentheses !== true) {
            this.fail(`expected an expression, found ${this.described()}`);
        }
        return { kind: "tuple", items };
    }

    protected isTupleEnd(end?: string): boolean {
        const ends = this.is("printEnd") || this.is("blockEnd") || this.is("operator", ")");
        return ends || (end !== undefined && this.is("name", end));
    }

    private condition(): Expression {
        let value = this.or();
        while (this.skip("name", "if")) {
            const test = this.or();
            const otherwise = this.skip("name", "else") ? this.nested(() => this.condition()) : undefined;
            value = { kind: "condition", test, then: value, otherwise };
        }
        return value;
    }

    private or(): Expression {
        let left = this.and();
        while (this.skip("name", "or")) {
            left = { kind: "or", left, right: this.and() };
        }
        return left;
    }

    private and(): Expression {
        let left = this.not();
        while (this.skip("name", "and")) {
            left = { kind: "and", left, right: this.not() };
        }
        return left;
    }

    private not(): Expression {
        if (this.skip("name", "not")) {
            return { kind: "not", operand: this.nested(() => this.not()) };
        }
        return this.compare();
    }

    private compare(): Expression {
        const first = this.sum();
        const rest: { operator: string; right: Expression }[] = [];
        for (;;) {
            if (this.is("operator") && COMPARISONS.has(this.current.text)) {
                rest.push({ operator: this.next().text, right: this.sum() });
            } else if (this.skip("name", "in")) {
                rest.push({ operator: "in", right: this.sum() });
            } else if (this.is("name", "not") && this.nextIs("name", "in")) {
                this.next();
                this.next();
                rest.push({ operator: "not in", right: this.sum() });
            } else {
                return rest.length === 0 ? first : { kind: "compare", first, rest };
            }
        }
    }

    private sum(): Expression {
        return this.chain(["+", "-"], () => this.concat());
    }

    private concat(): Expression {
        const items = [this.product()];
        while (this.skip("operator", "~")) {
            items.push(this.product());
        }
        return items.length === 1 ? items[0]! : { kind: "concat", items };
    }

    private product(): Expression {
        return this.chain(["*", "/", "//", "%"], () => this.chain(["**"], () => this.unary(true)));
    }

    /** Parse operands with binary operators between them, from left to right. */
    private chain(operators: readonly string[], operand: () => Expression): Expression {
        let left = operand();
        for (let count = 0; this.is("operator") && operators.includes(this.current.text); count += 1) {
            if (count > MAX_DEPTH) {
                this.fail(`it has more than ${MAX_DEPTH} operators in a row (recursion)`);
            }
            const { text: operator, line } = this.next();
            left = { kind: "binary", operator, left, right: operand(), line };
        }
        return left;
    }

    private unary(withFilters: boolean): Expression {
        let value: Expression;
        if (this.is("operator", "-") || this.is("operator", "+")) {
            const operator = this.next().text === "-" ? "-" : "+";
            value = { kind: "sign", operator, operand: this.nested(() => this.unary(false)) };
        } else {
            value = this.primary();
        }
        value = this.postfix(value);
        return withFilters ? this.filtersAndTests(value) : value;
    }

    protected primary(): Expression {
        const token = this.next();
        switch (token.kind) {
            case "name": {
                const constant = CONSTANTS.get(token.text);
                return constant === undefined
                    ? { kind: "name", name: token.text }
                    : { kind: "constant", value: constant };
            }
            case "string": {
                let value = token.text;
                while (this.is("string")) {
                    value += this.next().text;
                }
                return { kind: "constant", value };
            }
            case "integer":
                return { kind: "constant", value: BigInt(token.text) };
            case "float":
                return { kind: "constant", value: Number(token.text) };
            case "operator":
                if (token.text === "(") {
                    const value = this.nested(() => this.tuple({ parentheses: true }));
                    this.expect("operator", ")");
                    return value;
                }
                if (token.text === "[") {
                    return { kind: "list", items: this.items("]", () => this.expression()) };
                }
                if (token.text === "{") {
                    return { kind: "dict", pairs: this.items("}", () => this.pair()) };
                }
                break;
            default:
        }
        const found = token.kind === "end" ? "end of the template" : `"${token.text}"`;
        return this.fail(`unexpected ${found}`, token.line);
    }

    /** Parse items with commas between them, up to a closing bracket. */
    private items<T>(closing: string, parse: () => T): T[] {
        const items: T[] = [];
        while (!this.is("operator", closing)) {
            if (items.length > 0) {
                this.expect("operator", ",");
                if (this.is("operator", closing)) {
                    break;
                }
            }
            items.push(parse());
        }
        this.next();
        return items;
    }

    private pair(): readonly [Expression, Expression] {
        const key = this.expression();
        this.expect("operator", ":");
        return [key, this.expression()];
    }

    private postfix(value: Expression): Expression {
        return this.callsAnd(value, (each) => {
            if (this.skip("operator", ".")) return this.attribute(each);
            return this.skip("operator", "[") ? this.subscript(each) : undefined;
        });
    }

    /** Parse the calls and other operators after a value. `next` parses an operator that is not a call, if there is one. */
    private callsAnd(value: Expression, next: (value: Expression) => Expression | undefined): Expression {
        for (let count = 0; count <= MAX_DEPTH; count += 1) {
            const { line } = this.current;
            const longer: Expression | undefined = this.is("operator", "(")
                ? { kind: "call", callee: value, call: this.callArguments(), line }
                : next(value);
            if (longer === undefined) return value;
            value = longer;
        }
        return this.fail(`it has more than ${MAX_DEPTH} operators in a row (recursion)`);
    }

    private attribute(object: Expression): Expression {
        const token = this.next();
        if (token.kind === "name") {
            return { kind: "attribute", object, name: token.text };
        }
        if (token.kind !== "integer") {
            this.fail("expected name or number", token.line);
        }
        return { kind: "item", object, index: { kind: "constant", value: BigInt(token.text) } };
    }

    private subscript(object: Expression): Expression {
        const indices = this.items("]", () => this.index());
        if (indices.length === 1) {
            return { kind: "item", object, index: indices[0]! };
        }
        const items = indices.map((each) => (each.kind === "slice" ? unsupported("a tuple of slices") : each));
        return { kind: "item", object, index: { kind: "tuple", items } };
    }

    private index(): Expression | Slice {
        const start = this.is("operator", ":") ? undefined : this.expression();
        if (start !== undefined && !this.is("operator", ":")) {
            return start;
        }
        this.next();
        const part = (): Expression | undefined =>
            [":", "]", ","].some((text) => this.is("operator", text)) ? undefined : this.expression();
        const stop = part();
        return { kind: "slice", start, stop, step: this.skip("operator", ":") ? part() : undefined };
    }

    protected callArguments(): CallArguments {
        const { line } = this.expect("operator", "(");
        const positional: Expression[] = [];
        const keywords: { name: string; value: Expression }[] = [];
        let list: Expression | undefined;
        let dict: Expression | undefined;
        const ensure = (valid: boolean): void => {
            if (!valid) {
                this.fail("invalid syntax for function call expression", line);
            }
        };
        this.items(")", () => {
            if (this.skip("operator", "*")) {
                ensure(list === undefined && dict === undefined);
                list = this.expression();
            } else if (this.skip("operator", "**")) {
                ensure(dict === undefined);
                dict = this.expression();
            } else if (this.is("name") && this.nextIs("operator", "=")) {
                const name = this.next().text;
                ensure(dict === undefined && keywords.every((each) => each.name !== name));
                this.next();
                keywords.push({ name, value: this.expression() });
            } else {
                ensure(list === undefined && dict === undefined && keywords.length === 0);
                positional.push(this.expression());
            }
        });
        return { positional, keywords, list, dict };
    }

    private filtersAndTests(value: Expression): Expression {
        return this.callsAnd(value, (each) => {
            if (this.skip("operator", "|")) return this.filter(each);
            return this.is("name", "is") ? this.test(each) : undefined;
        });
    }

    /** Parse the name and the arguments of a filter. */
    protected filter(operand: Expression | undefined): FilterExpression {
        const { line } = this.current;
        const name = this.dottedName();
        const call = this.is("operator", "(") ? this.callArguments() : NO_ARGUMENTS;
        return { kind: "filter", name, operand, call, line };
    }

    private dottedName(): string {
        let name = this.expect("name").text;
        while (this.skip("operator", ".")) {
            name += `.${this.expect("name").text}`;
        }
        return name;
    }

    private test(operand: Expression): Expression {
        const { line } = this.next();
        const negated = this.skip("name", "not");
        const name = this.dottedName();
        const test: Expression = { kind: "test", name, operand, call: this.testArguments(), line };
        return negated ? { kind: "not", operand: test } : test;
    }

    private testArguments(): CallArguments {
        if (this.is("operator", "(")) {
            return this.callArguments();
        }
        const begins =
            this.is("string") ||
            this.is("integer") ||
            this.is("float") ||
            this.is("operator", "[") ||
            this.is("operator", "{") ||
            (this.is("name") && !["else", "or", "and"].includes(this.current.text));
        if (!begins) {
            return NO_ARGUMENTS;
        }
        if (this.is("name", "is")) {
            this.fail("tests cannot be chained with is");
        }
        return { positional: [this.postfix(this.primary())], keywords: [] };
    }
}
