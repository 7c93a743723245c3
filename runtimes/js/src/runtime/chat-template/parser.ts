/** The parser of statements. */

import type {
    Body,
    CallExpression,
    Expression,
    FilterExpression,
    ForStatement,
    MacroStatement,
    Statement,
    Target,
    Template,
} from "./ast.js";
import { ExpressionParser } from "./expression-parser.js";
import { unsupported } from "./failures.js";
import { tokenize } from "./lexer.js";
import { resolveScopes } from "./scopes.js";

const REFUSED = new Set(["autoescape", "block", "extends", "from", "import", "include"]);
const RESERVED = new Set(["true", "false", "none", "True", "False", "None"]);
const NO_LOADS: Body["loads"] = new Map();

/**
 * Return the tree of a template.
 *
 * @throws TemplateFailure The text is not a template, or has a tag that this driver does not have.
 */
export function parseTemplate(source: string): Template {
    const template = { body: new Parser(tokenize(source)).template() };
    resolveScopes(template);
    return template;
}

class Parser extends ExpressionParser {
    /** Loops around the current place, as far as `break` can leave them, and all of them. */
    private breakable = 0;
    private loops = 0;

    template(): Body {
        const statements = this.statements([]);
        return { statements, loads: NO_LOADS };
    }

    /** Parse statements up to one of the tags in `ends`, or to the end of the template if there are none. */
    private statements(ends: readonly string[]): Statement[] {
        const statements: Statement[] = [];
        for (;;) {
            const token = this.next();
            if (token.kind === "end") {
                if (ends.length > 0) {
                    this.fail(`Unexpected end of template, expected the tag ${ends.join(" or ")}`, token.line);
                }
                return statements;
            }
            if (token.kind === "text") {
                statements.push({ kind: "text", text: token.text });
            } else if (token.kind === "printBegin") {
                statements.push({ kind: "print", value: this.tuple(), line: token.line });
                this.expect("printEnd");
            } else if (this.is("name") && ends.includes(this.current.text)) {
                return statements;
            } else {
                statements.push(...this.nested(() => this.statement()));
                this.expect("blockEnd");
            }
        }
    }

    /** Parse the end of a tag, the body, and the name of the tag that ends it. */
    private block(...ends: string[]): { statements: Statement[]; end: string } {
        this.skip("operator", ":");
        this.expect("blockEnd");
        const statements = this.statements(ends);
        return { statements, end: this.next().text };
    }

    private body(end: string): Body {
        return { statements: this.block(end).statements, loads: NO_LOADS };
    }

    /** Parse a body that `break` and `continue` cannot leave. */
    private closedBody(end: string): Body {
        const { breakable } = this;
        this.breakable = 0;
        const body = this.body(end);
        this.breakable = breakable;
        return body;
    }

    private statement(): Statement[] {
        const { text: name, line } = this.expect("name");
        switch (name) {
            case "if":
                return [this.if(line)];
            case "for":
                return [this.for(line)];
            case "set":
                return [this.set(line)];
            case "with":
                return [this.with(line)];
            case "macro":
                return [this.macro(line)];
            case "call":
                return [this.callBlock(line)];
            case "filter":
                return [{ kind: "filterBlock", filter: this.filters(undefined), body: this.body("endfilter"), line }];
            case "generation":
                return [{ kind: "generation", body: this.closedBody("endgeneration"), line }];
            case "print":
                return this.print(line);
            case "break":
            case "continue":
                if (this.breakable === 0) {
                    this.fail(`'${name}' not properly in loop`, line);
                }
                return [{ kind: name }];
            default:
                if (REFUSED.has(name)) {
                    unsupported(`line ${line}: the tag ${name}`);
                }
                return this.fail(`Encountered unknown tag '${name}'`, line);
        }
    }

    private print(line: number): Statement[] {
        const statements: Statement[] = [];
        while (!this.is("blockEnd")) {
            if (statements.length > 0) {
                this.expect("operator", ",");
            }
            statements.push({ kind: "print", value: this.expression(), line });
        }
        return statements;
    }

    private if(line: number): Statement {
        const branches: { test: Expression; statements: Statement[] }[] = [];
        for (;;) {
            const test = this.tuple({ condition: false });
            const { statements, end } = this.block("elif", "else", "endif");
            branches.push({ test, statements });
            if (end !== "elif") {
                return { kind: "if", branches, otherwise: end === "else" ? this.block("endif").statements : [], line };
            }
        }
    }

    private for(line: number): ForStatement {
        this.loops += 1;
        const target = this.target({ end: "in" });
        this.expect("name", "in");
        const items = this.tuple({ condition: false, end: "recursive" });
        const test = this.skip("name", "if") ? this.expression() : undefined;
        const recursive = this.skip("name", "recursive");
        this.breakable += 1;
        const { statements, end } = this.block("endfor", "else");
        this.breakable -= 1;
        let otherwise: Body | undefined;
        if (end === "else") {
            otherwise = recursive ? this.closedBody("endfor") : this.body("endfor");
        }
        this.loops -= 1;
        return { kind: "for", target, items, test, recursive, body: { statements, loads: NO_LOADS }, otherwise, line };
    }

    private set(line: number): Statement {
        const target = this.target({ namespace: true });
        if (this.skip("operator", "=")) {
            return { kind: "set", target, value: this.tuple(), line };
        }
        const filter = this.skip("operator", "|") ? this.filters(undefined) : undefined;
        return { kind: "setBlock", target, filter, body: this.body("endset"), line };
    }

    /** Parse filters with "|" between them. */
    private filters(operand: undefined): FilterExpression {
        let filter = this.filter(operand);
        while (this.skip("operator", "|")) {
            filter = this.nested(() => this.filter(filter));
        }
        return filter;
    }

    private with(line: number): Statement {
        const targets: Target[] = [];
        const values: Expression[] = [];
        while (!this.is("blockEnd")) {
            if (targets.length > 0) {
                this.expect("operator", ",");
            }
            targets.push(this.target({ parameter: true }));
            this.expect("operator", "=");
            values.push(this.expression());
        }
        return { kind: "with", targets, values, body: this.body("endwith"), line };
    }

    private macro(line: number): MacroStatement {
        const name = this.parameter();
        const signature = this.signature();
        const body = this.closedBody("endmacro");
        return { kind: "macro", name, ...signature, body, special: new Set(), line };
    }

    private callBlock(line: number): Statement {
        const signature = this.is("operator", "(") ? this.signature() : { parameters: [], defaults: [] };
        const call = this.expression();
        if (call.kind !== "call") {
            this.fail("expected call", line);
        }
        const body = this.closedBody("endcall");
        const caller: MacroStatement = {
            kind: "macro",
            name: undefined,
            ...signature,
            body,
            special: new Set(),
            line,
        };
        return { kind: "callBlock", call: call satisfies CallExpression, caller, line };
    }

    private signature(): { parameters: string[]; defaults: Expression[] } {
        const parameters: string[] = [];
        const defaults: Expression[] = [];
        this.expect("operator", "(");
        while (!this.is("operator", ")")) {
            if (parameters.length > 0) {
                this.expect("operator", ",");
            }
            const name = this.parameter();
            if (parameters.includes(name)) {
                this.fail(`duplicate parameter '${name}'`);
            }
            parameters.push(name);
            if (this.skip("operator", "=")) {
                defaults.push(this.expression());
            } else if (defaults.length > 0) {
                this.fail("non-default argument follows default argument");
            }
        }
        this.next();
        return { parameters, defaults };
    }

    private parameter(): string {
        const { text } = this.expect("name");
        return RESERVED.has(text) ? this.fail(`can't assign to '${text}'`) : text;
    }

    private target(options: { namespace?: boolean; parameter?: boolean; end?: string }): Target {
        const items: Target[] = [];
        let isTuple = false;
        do {
            if (this.isTupleEnd(options.end)) {
                break;
            }
            items.push(this.targetItem(options));
            isTuple ||= this.is("operator", ",");
        } while (this.skip("operator", ","));
        return isTuple ? { kind: "targets", items } : (items[0] ?? this.fail("expected a variable"));
    }

    private targetItem(options: { namespace?: boolean; parameter?: boolean }): Target {
        const { line } = this.current;
        const value = this.primary();
        if (options.namespace === true && value.kind === "name" && this.skip("operator", ".")) {
            return { kind: "namespace", name: value.name, attribute: this.expect("name").text };
        }
        return this.asTarget(value, line, options.parameter === true);
    }

    private asTarget(value: Expression, line: number, isParameter: boolean): Target {
        if (value.kind === "tuple") {
            return { kind: "targets", items: value.items.map((each) => this.asTarget(each, line, isParameter)) };
        }
        if (value.kind !== "name") {
            this.fail(`can't assign to '${value.kind}'`, line);
        }
        if (value.name === "loop" && this.loops > 0 && !isParameter) {
            this.fail("Can't assign to special loop variable in for-loop target", line);
        }
        return { kind: "name", name: value.name };
    }
}
