/** Renders the tree of a template. */

import type {
    Body,
    CallArguments,
    Expression,
    FilterExpression,
    ForStatement,
    MacroStatement,
    Slice,
    Statement,
    Target,
    Template,
} from "./ast.js";
import { attribute, item, slice } from "./attributes.js";
import type { Engine } from "./engine.js";
import { fail, unsupported } from "./failures.js";
import { FILTERS } from "./filters.js";
import { GLOBALS, Namespace } from "./functions.js";
import type { Work } from "./limits.js";
import { Loop, type Recursion } from "./loop.js";
import { Macro } from "./macro.js";
import { binary, compare, signed } from "./operators.js";
import { str } from "./text.js";
import { TESTS } from "./tests.js";
import {
    Dict,
    isList,
    isTrue,
    orElse,
    iterate,
    Tuple,
    TemplateObject,
    typeName,
    Undefined,
    type Arguments,
    type Value,
} from "./values.js";

/** How statements end. */
type End = "normal" | "break" | "continue";

/** The variables of a scope. A value undefined: the variable has no value yet. */
class Scope {
    readonly variables = new Map<string, Value | undefined>();

    constructor(readonly parent: Scope | undefined) {}
}

export class Interpreter implements Engine {
    /** The line of the statement or operation that runs, for messages. */
    line = 1;
    private output: string[] = [];

    constructor(
        private readonly template: Template,
        private readonly context: ReadonlyMap<string, Value>,
        readonly work: Work,
    ) {}

    /** Return the text of the template. */
    run(): string {
        return this.captured(() => {
            this.body(this.template.body, undefined);
        });
    }

    attribute(value: Value, name: string): Value {
        return attribute(this, value, name);
    }

    item(value: Value, index: Value): Value {
        return item(this, value, index);
    }

    filter(name: string, value: Value, args: Arguments): Value {
        const filter = FILTERS.get(name) ?? fail(`No filter named '${name}'`);
        return this.counted(filter(this, value, args));
    }

    test(name: string, value: Value, args: Arguments): boolean {
        const test = TESTS.get(name) ?? fail(`No test named '${name}'`);
        this.work.add(0);
        return test(this, value, args);
    }

    /** Return a value after adding its size to the work. */
    private counted(value: Value): Value {
        const size = typeof value === "string" || isList(value) ? value.length : 0;
        this.work.add(value instanceof Tuple ? value.items.length : size);
        return value;
    }

    private write(text: string): void {
        this.work.add(text.length);
        this.output.push(text);
    }

    /** Return the text that a function writes. */
    private captured(write: () => void): string {
        const outer = this.output;
        this.output = [];
        try {
            write();
            return this.output.join("");
        } finally {
            this.output = outer;
        }
    }

    private lookUp(scope: Scope | undefined, name: string): Value {
        for (let each = scope; each !== undefined; each = each.parent) {
            if (each.variables.has(name)) {
                return orElse(each.variables.get(name), new Undefined(`'${name}' is undefined`));
            }
        }
        const value = this.given(name);
        if (value === undefined && name === "self") {
            unsupported("the variable self");
        }
        return orElse(value, new Undefined(`'${name}' is undefined`));
    }

    /** Return a variable of the driver or a function. */
    private given(name: string): Value | undefined {
        return this.context.has(name) ? this.context.get(name) : GLOBALS.get(name);
    }

    /** Return a scope with the first values of its variables. */
    private scope(loads: Body["loads"], parent: Scope | undefined): Scope {
        const scope = new Scope(parent);
        for (const [name, load] of loads) {
            let value: Value | undefined;
            if (load === "context") {
                value = this.given(name);
            } else if (load === "outer") {
                let outer = parent;
                while (outer !== undefined && !outer.variables.has(name)) {
                    outer = outer.parent;
                }
                value = outer?.variables.get(name);
            }
            scope.variables.set(name, value);
        }
        return scope;
    }

    private body(body: Body, parent: Scope | undefined): End {
        return this.statements(body.statements, this.scope(body.loads, parent));
    }

    private statements(statements: readonly Statement[], scope: Scope): End {
        for (const statement of statements) {
            const end = this.statement(statement, scope);
            if (end !== "normal") {
                return end;
            }
        }
        return "normal";
    }

    private statement(statement: Statement, scope: Scope): End {
        if ("line" in statement) {
            this.line = statement.line;
        }
        switch (statement.kind) {
            case "text":
                this.write(statement.text);
                return "normal";
            case "print": {
                const text = str(this.evaluate(statement.value, scope));
                this.work.add(text.length);
                this.write(text);
                return "normal";
            }
            case "if": {
                const branch = statement.branches.find((each) => isTrue(this.evaluate(each.test, scope)));
                return this.statements(branch?.statements ?? statement.otherwise, scope);
            }
            case "for":
                return this.loops(statement, scope);
            case "set":
                this.assign(statement.target, this.evaluate(statement.value, scope), scope);
                return "normal";
            case "setBlock": {
                const { text, end, inner } = this.block(statement.body, scope);
                if (end === "normal") {
                    const { filter } = statement;
                    this.assign(
                        statement.target,
                        filter === undefined ? text : this.filtered(filter, inner, text),
                        scope,
                    );
                }
                return end;
            }
            case "filterBlock": {
                const { text, end, inner } = this.block(statement.body, scope);
                if (end === "normal") {
                    this.write(str(this.filtered(statement.filter, inner, text)));
                }
                return end;
            }
            case "with":
                return this.with(statement, scope);
            case "macro":
                scope.variables.set(statement.name ?? "", this.macro(statement, scope));
                return "normal";
            case "callBlock": {
                const callee = this.evaluate(statement.call.callee, scope);
                const args = this.arguments(statement.call.call, scope);
                if (args.keywords.has("caller")) {
                    fail("got multiple values for keyword argument 'caller'");
                }
                const keywords = new Map([...args.keywords, ["caller", this.macro(statement.caller, scope)]]);
                this.write(str(this.call(callee, { ...args, keywords })));
                return "normal";
            }
            case "generation":
                this.write(
                    this.captured(() => {
                        this.body(statement.body, scope);
                    }),
                );
                return "normal";
            default:
                return statement.kind;
        }
    }

    /** Return the text of a body, how it ended, and its scope. */
    private block(body: Body, scope: Scope): { text: string; end: End; inner: Scope } {
        const inner = this.scope(body.loads, scope);
        let end: End = "normal";
        const text = this.captured(() => {
            end = this.statements(body.statements, inner);
        });
        this.work.add(text.length);
        return { text, end, inner };
    }

    private with(statement: Statement & { kind: "with" }, scope: Scope): End {
        const inner = this.scope(statement.body.loads, scope);
        statement.targets.forEach((target, index) => {
            this.assign(target, this.evaluate(statement.values[index]!, scope), inner);
        });
        return this.statements(statement.body.statements, inner);
    }

    private assign(target: Target, value: Value, scope: Scope): void {
        switch (target.kind) {
            case "name":
                scope.variables.set(target.name, value);
                break;
            case "namespace": {
                const namespace = this.lookUp(scope, target.name);
                if (!(namespace instanceof Namespace)) {
                    fail("cannot assign attribute on non-namespace object");
                }
                namespace.set(target.attribute, value);
                break;
            }
            case "targets": {
                const values: Value[] = [];
                for (const each of iterate(value)) {
                    values.push(each);
                    if (values.length > target.items.length) {
                        break;
                    }
                }
                if (values.length !== target.items.length) {
                    fail(`expected ${target.items.length} values to unpack, found ${values.length}`);
                }
                target.items.forEach((each, index) => {
                    this.assign(each, values[index]!, scope);
                });
            }
        }
    }

    private loops(statement: ForStatement, scope: Scope): End {
        if (!statement.recursive) {
            return this.loop(statement, scope, this.evaluate(statement.items, scope), 0, undefined);
        }
        const recursion: Recursion = (items, depth) => {
            this.work.enter();
            const text = this.captured(() => {
                this.loop(statement, scope, items, depth, recursion);
            });
            this.work.leave();
            return text;
        };
        this.write(recursion(this.evaluate(statement.items, scope), 0));
        return "normal";
    }

    private loop(
        statement: ForStatement,
        scope: Scope,
        source: Value,
        depth: number,
        recursion: Recursion | undefined,
    ): End {
        const hasTest = statement.test !== undefined;
        const items = hasTest ? this.tested(statement, scope, iterate(source)) : iterate(source);
        const loop = new Loop(hasTest ? undefined : source, items, depth, recursion);
        let ranToEnd = false;
        for (let value = loop.next(); value !== undefined; value = loop.next()) {
            this.work.add(0);
            const inner = this.scope(statement.body.loads, scope);
            inner.variables.set("loop", loop);
            this.assign(statement.target, value, inner);
            const end = this.statements(statement.body.statements, inner);
            ranToEnd ||= end === "normal";
            if (end === "break") {
                break;
            }
        }
        // As in Jinja, an iteration counts for `else` only if it reaches the end of the body.
        return ranToEnd || statement.otherwise === undefined ? "normal" : this.body(statement.otherwise, scope);
    }

    private *tested(statement: ForStatement, scope: Scope, items: Iterable<Value>): Generator<Value> {
        for (const value of items) {
            this.work.add(0);
            const inner = new Scope(scope);
            this.assign(statement.target, value, inner);
            if (isTrue(this.evaluate(statement.test!, inner))) {
                yield value;
            }
        }
    }

    private macro(statement: MacroStatement, scope: Scope): Macro {
        return new Macro(statement, (values) => {
            this.work.enter();
            const { line } = this;
            const inner = this.scope(statement.body.loads, scope);
            const { parameters, defaults } = statement;
            values.forEach((value, name) => inner.variables.set(name, value));
            parameters.forEach((name, index) => {
                if (values.get(name) === undefined) {
                    const value = defaults[index - parameters.length + defaults.length];
                    const missing = new Undefined(`parameter '${name}' was not provided`);
                    inner.variables.set(name, value === undefined ? missing : this.evaluate(value, inner));
                }
            });
            const text = this.captured(() => {
                this.statements(statement.body.statements, inner);
            });
            this.line = line;
            this.work.leave();
            return text;
        });
    }

    private call(callee: Value, args: Arguments): Value {
        if (callee instanceof Undefined) {
            callee.fail();
        }
        if (!(callee instanceof TemplateObject)) {
            fail(`'${typeName(callee)}' object is not callable`);
        }
        return this.counted(callee.call(args));
    }

    private arguments(call: CallArguments, scope: Scope): Arguments {
        const positional = call.positional.map((each) => this.evaluate(each, scope));
        const keywords = new Map(call.keywords.map(({ name, value }) => [name, this.evaluate(value, scope)]));
        if (call.list !== undefined) {
            for (const each of iterate(this.evaluate(call.list, scope))) {
                positional.push(each);
                this.work.add(1);
            }
        }
        if (call.dict !== undefined) {
            const dict = this.evaluate(call.dict, scope);
            if (!(dict instanceof Dict)) {
                fail(`argument after ** must be a mapping, not ${typeName(dict)}`);
            }
            for (const [name, value] of dict.items()) {
                if (typeof name !== "string" || keywords.has(name)) {
                    fail(`the keyword argument ${str(name)} is not a text or is given twice`);
                }
                keywords.set(name, value);
            }
        }
        return { positional, keywords };
    }

    private filtered(filter: FilterExpression, scope: Scope, text: Value): Value {
        const operand =
            filter.operand === undefined ? text : this.filtered(filter.operand as FilterExpression, scope, text);
        this.line = filter.line;
        return this.filter(filter.name, operand, this.arguments(filter.call, scope));
    }

    private evaluate(expression: Expression, scope: Scope): Value {
        this.work.enter();
        const value = this.value(expression, scope);
        this.work.leave();
        return value;
    }

    private value(expression: Expression, scope: Scope): Value {
        switch (expression.kind) {
            case "constant":
                return expression.value;
            case "name":
                return this.lookUp(scope, expression.name);
            case "list":
                return expression.items.map((each) => this.evaluate(each, scope));
            case "tuple":
                return new Tuple(expression.items.map((each) => this.evaluate(each, scope)));
            case "dict":
                return new Dict(
                    expression.pairs.map(([key, value]) => [this.evaluate(key, scope), this.evaluate(value, scope)]),
                );
            case "concat":
                return this.counted(expression.items.map((each) => str(this.evaluate(each, scope))).join(""));
            case "condition":
                if (isTrue(this.evaluate(expression.test, scope))) {
                    return this.evaluate(expression.then, scope);
                }
                return expression.otherwise === undefined
                    ? new Undefined("the inline if-expression evaluated to false and no else section was defined.")
                    : this.evaluate(expression.otherwise, scope);
            case "and":
            case "or": {
                const left = this.evaluate(expression.left, scope);
                return isTrue(left) === (expression.kind === "or") ? left : this.evaluate(expression.right, scope);
            }
            case "not":
                return !isTrue(this.evaluate(expression.operand, scope));
            case "sign":
                return signed(expression.operator, this.evaluate(expression.operand, scope));
            case "compare":
                return this.comparison(expression, scope);
            case "binary": {
                const left = this.evaluate(expression.left, scope);
                const right = this.evaluate(expression.right, scope);
                this.line = expression.line;
                return this.counted(binary(this, expression.operator, left, right));
            }
            case "attribute":
                return this.attribute(this.evaluate(expression.object, scope), expression.name);
            case "item":
                return this.subscript(expression.object, expression.index, scope);
            case "call": {
                const callee = this.evaluate(expression.callee, scope);
                const args = this.arguments(expression.call, scope);
                this.line = expression.line;
                return this.call(callee, args);
            }
            case "filter": {
                const operand = this.evaluate(expression.operand!, scope);
                const args = this.arguments(expression.call, scope);
                this.line = expression.line;
                return this.filter(expression.name, operand, args);
            }
            case "test": {
                const operand = this.evaluate(expression.operand, scope);
                const args = this.arguments(expression.call, scope);
                this.line = expression.line;
                return this.test(expression.name, operand, args);
            }
        }
    }

    private comparison(expression: Expression & { kind: "compare" }, scope: Scope): boolean {
        let left = this.evaluate(expression.first, scope);
        for (const { operator, right: next } of expression.rest) {
            const right = this.evaluate(next, scope);
            this.work.add(0);
            if (!compare(operator, left, right)) {
                return false;
            }
            left = right;
        }
        return true;
    }

    private subscript(object: Expression, index: Expression | Slice, scope: Scope): Value {
        const value = this.evaluate(object, scope);
        if (index.kind !== "slice") {
            return this.item(value, this.evaluate(index, scope));
        }
        const part = (each: Expression | undefined): Value => (each === undefined ? null : this.evaluate(each, scope));
        return this.counted(slice(value, part(index.start), part(index.stop), part(index.step)));
    }
}
