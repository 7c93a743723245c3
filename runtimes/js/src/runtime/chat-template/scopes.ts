/**
 * The variables of each scope of a template. Jinja decides before a rendering which variables a scope has and where
 * their first values come from:
 *
 * - "outer": a scope around this one has the variable.
 * - "context": no scope has it, and it is read before it is set, or set on some paths only. Its first value is the
 *   variable of this name that the driver gives to the template.
 * - "undefined": no scope has it, and it is set first. Until then it is undefined, even if the driver gives a variable
 *   of this name.
 */

import type {
    Body,
    CallArguments,
    Expression,
    Load,
    MacroStatement,
    Slice,
    Statement,
    Target,
    Template,
} from "./ast.js";
import { fail } from "./failures.js";
import { FILTERS } from "./filters.js";
import { TESTS } from "./tests.js";

/** Set the variables of all scopes of a template. */
export function resolveScopes(template: Template): void {
    new Scope(undefined).resolve(template.body, []);
}

class Scope {
    private readonly parameters = new Set<string>();
    private loads = new Map<string, Load>();
    private stores = new Set<string>();
    private readonly inner: (() => void)[] = [];
    /** Whether an unknown filter or test is a failure only when it is used, as in the branches of `if`. */
    private lenient = false;

    constructor(private readonly parent: Scope | undefined) {}

    /** Set the variables of a body, then those of the scopes in it. */
    resolve(body: Body, parameters: readonly string[], expressions: readonly Expression[] = []): void {
        parameters.forEach((each) => this.parameters.add(each));
        expressions.forEach((each) => {
            this.expression(each);
        });
        this.statements(body.statements);
        body.loads = this.loads;
        this.inner.forEach((each) => {
            each();
        });
    }

    private has(name: string): boolean {
        return this.parameters.has(name) || this.loads.has(name);
    }

    private isKnown(name: string): boolean {
        return this.has(name) || (this.parent?.isKnown(name) ?? false);
    }

    private load(name: string): void {
        if (!this.isKnown(name)) {
            this.loads.set(name, "context");
        }
    }

    private store(name: string): void {
        this.stores.add(name);
        if (!this.has(name)) {
            this.loads.set(name, this.parent?.isKnown(name) === true ? "outer" : "undefined");
        }
    }

    /** Visit statements or expressions with other rules for unknown filters and tests. */
    private withLeniency(lenient: boolean, visit: () => void): void {
        const before = this.lenient;
        this.lenient = lenient;
        visit();
        this.lenient = before;
    }

    private child(body: Body, parameters: readonly string[] = [], expressions: readonly Expression[] = []): void {
        this.inner.push(() => {
            new Scope(this).resolve(body, parameters, expressions);
        });
    }

    private statements(statements: readonly Statement[]): void {
        statements.forEach((each) => {
            this.statement(each);
        });
    }

    private statement(statement: Statement): void {
        switch (statement.kind) {
            case "print":
                this.expression(statement.value);
                break;
            case "if":
                this.withLeniency(true, () => {
                    this.if(statement);
                });
                break;
            case "for": {
                const names = ["loop", ...targetNames(statement.target)];
                this.expression(statement.items);
                this.child(statement.body, names);
                if (statement.test !== undefined) {
                    this.child({ statements: [], loads: new Map() }, names.slice(1), [statement.test]);
                }
                if (statement.otherwise !== undefined) {
                    this.child(statement.otherwise);
                }
                break;
            }
            case "set":
                this.expression(statement.value);
                this.target(statement.target);
                break;
            case "setBlock":
                this.target(statement.target);
                this.child(statement.body, [], statement.filter === undefined ? [] : [statement.filter]);
                break;
            case "with":
                statement.values.forEach((each) => {
                    this.expression(each);
                });
                this.child(statement.body, statement.targets.flatMap(targetNames));
                break;
            case "filterBlock":
                this.expression(statement.filter);
                this.child(statement.body, [], [statement.filter]);
                break;
            case "macro":
                this.store(statement.name ?? "");
                this.macro(statement);
                break;
            case "callBlock":
                this.expression(statement.call);
                this.macro(statement.caller);
                break;
            case "generation":
                this.child(statement.body);
                break;
            default:
        }
    }

    private macro(macro: MacroStatement): void {
        const special = new Set<string>();
        const declared = new Set<string>();
        for (const name of namesInOrder(macro.body.statements)) {
            const isSpecial = ["caller", "kwargs", "varargs"].includes(name.name);
            if (name.isStore) {
                declared.add(name.name);
            } else if (isSpecial && !declared.has(name.name)) {
                special.add(name.name);
            }
        }
        const index = macro.parameters.indexOf("caller");
        if (special.has("caller") && index >= 0 && index < macro.parameters.length - macro.defaults.length) {
            fail(`line ${macro.line}: the special parameter "caller" needs a default`);
        }
        macro.special = special;
        this.child(macro.body, [...macro.parameters, ...special], macro.defaults);
    }

    private target(target: Target): void {
        switch (target.kind) {
            case "name":
                this.store(target.name);
                break;
            case "namespace":
                this.load(target.name);
                break;
            case "targets":
                target.items.forEach((each) => {
                    this.target(each);
                });
        }
    }

    private if(statement: Statement & { kind: "if" }): void {
        const [first, ...others] = statement.branches;
        this.expression(first!.test);
        const branches = [
            this.branch(() => {
                this.statements(first!.statements);
            }),
            this.branch(() => {
                for (const each of others) {
                    // Each elif is an if of its own, whose other branches are empty.
                    this.if({ ...statement, branches: [each], otherwise: [] });
                }
            }),
            this.branch(() => {
                this.statements(statement.otherwise);
            }),
        ];
        const stored = new Map<string, number>();
        for (const name of branches.flatMap((each) => [...each.stores])) {
            if (!this.stores.has(name)) {
                stored.set(name, (stored.get(name) ?? 0) + 1);
            }
        }
        for (const branch of branches) {
            branch.loads.forEach((load, name) => this.loads.set(name, load));
            branch.stores.forEach((name) => this.stores.add(name));
        }
        for (const [name, count] of stored) {
            if (count < branches.length && !this.parameters.has(name)) {
                this.loads.set(name, this.parent?.isKnown(name) === true ? "outer" : "context");
            }
        }
    }

    /** Visit a branch with a copy of the variables, and return the copy. */
    private branch(visit: () => void): { loads: Map<string, Load>; stores: Set<string> } {
        const { loads, stores } = this;
        this.loads = new Map(loads);
        this.stores = new Set(stores);
        visit();
        const branch = { loads: this.loads, stores: this.stores };
        this.loads = loads;
        this.stores = stores;
        return branch;
    }

    private expression(expression: Expression | Slice): void {
        if (expression.kind === "name") {
            this.load(expression.name);
        } else if (expression.kind === "filter" && !this.lenient && !FILTERS.has(expression.name)) {
            fail(`line ${expression.line}: No filter named '${expression.name}'`);
        } else if (expression.kind === "test" && !this.lenient && !TESTS.has(expression.name)) {
            fail(`line ${expression.line}: No test named '${expression.name}'`);
        }
        this.withLeniency(this.lenient || expression.kind === "condition", () => {
            for (const child of children(expression)) {
                this.expression(child);
            }
        });
    }
}

function targetNames(target: Target): string[] {
    return target.kind === "targets" ? target.items.flatMap(targetNames) : [target.name];
}

function callChildren(call: CallArguments): (Expression | undefined)[] {
    return [...call.positional, ...call.keywords.map((each) => each.value), call.list, call.dict];
}

/** Return the expressions of which an expression consists, in the order in which Jinja visits them. */
function children(expression: Expression | Slice): (Expression | Slice)[] {
    const parts = (): (Expression | Slice | undefined)[] => {
        switch (expression.kind) {
            case "tuple":
            case "list":
            case "concat":
                return [...expression.items];
            case "dict":
                return expression.pairs.flat();
            case "condition":
                return [expression.test, expression.then, expression.otherwise];
            case "and":
            case "or":
            case "binary":
                return [expression.left, expression.right];
            case "not":
            case "sign":
                return [expression.operand];
            case "compare":
                return [expression.first, ...expression.rest.map((each) => each.right)];
            case "attribute":
                return [expression.object];
            case "item":
                return [expression.object, expression.index];
            case "slice":
                return [expression.start, expression.stop, expression.step];
            case "call":
                return [expression.callee, ...callChildren(expression.call)];
            case "filter":
            case "test":
                return [expression.operand, ...callChildren(expression.call)];
            default:
                return [];
        }
    };
    return parts().filter((each) => each !== undefined);
}

interface NameUse {
    readonly name: string;
    readonly isStore: boolean;
}

/** Yield the names in statements in their order in the template. */
function* namesInOrder(statements: readonly Statement[]): Generator<NameUse> {
    const stores = (target: Target): NameUse[] => targetNames(target).map((name) => ({ name, isStore: true }));
    for (const each of statements) {
        switch (each.kind) {
            case "print":
                yield* namesOf(each.value);
                break;
            case "if":
                for (const branch of each.branches) {
                    yield* namesOf(branch.test);
                    yield* namesInOrder(branch.statements);
                }
                yield* namesInOrder(each.otherwise);
                break;
            case "for":
                yield* stores(each.target);
                yield* namesOf(each.items);
                yield* namesInOrder(each.body.statements);
                yield* namesInOrder(each.otherwise?.statements ?? []);
                yield* each.test === undefined ? [] : namesOf(each.test);
                break;
            case "set":
                yield* stores(each.target);
                yield* namesOf(each.value);
                break;
            case "setBlock":
                yield* stores(each.target);
                yield* each.filter === undefined ? [] : namesOf(each.filter);
                yield* namesInOrder(each.body.statements);
                break;
            case "with":
                yield* each.targets.flatMap(stores);
                for (const value of each.values) {
                    yield* namesOf(value);
                }
                yield* namesInOrder(each.body.statements);
                break;
            case "filterBlock":
                yield* namesInOrder(each.body.statements);
                yield* namesOf(each.filter);
                break;
            case "macro":
                yield* macroNames(each);
                break;
            case "callBlock":
                yield* namesOf(each.call);
                yield* macroNames(each.caller);
                break;
            case "generation":
                yield* namesInOrder(each.body.statements);
                break;
            default:
        }
    }
}

function* macroNames(macro: MacroStatement): Generator<NameUse> {
    yield* macro.parameters.map((name) => ({ name, isStore: true }));
    for (const value of macro.defaults) {
        yield* namesOf(value);
    }
    yield* namesInOrder(macro.body.statements);
}

function* namesOf(expression: Expression | Slice): Generator<NameUse> {
    if (expression.kind === "name") {
        yield { name: expression.name, isStore: false };
    }
    for (const child of children(expression)) {
        yield* namesOf(child);
    }
}
