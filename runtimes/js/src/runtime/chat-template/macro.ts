/** A macro, or the body of a call block. */

import type { MacroStatement } from "./ast.js";
import { fail } from "./failures.js";
import { Dict, TemplateObject, Tuple, Undefined, type Arguments, type Value } from "./values.js";

const NO_CALLER = new Undefined("No caller defined");

export class Macro extends TemplateObject {
    readonly typeName = "Macro";

    /** `run` renders the body with the given variables. */
    constructor(
        private readonly statement: MacroStatement,
        private readonly run: (variables: ReadonlyMap<string, Value>) => string,
    ) {
        super();
    }

    override attribute(name: string): Value | undefined {
        const { special, parameters } = this.statement;
        switch (name) {
            case "name":
                return this.statement.name ?? "caller";
            case "arguments":
                return new Tuple(parameters);
            case "catch_kwargs":
                return special.has("kwargs");
            case "catch_varargs":
                return special.has("varargs");
            case "caller":
                return special.has("caller");
            case "explicit_caller":
                return parameters.includes("caller");
            default:
                return undefined;
        }
    }

    override text(): string {
        return `<Macro ${this.statement.name === undefined ? "'caller'" : `'${this.statement.name}'`}>`;
    }

    override isCallable(): boolean {
        return true;
    }

    override call(args: Arguments): Value {
        const { parameters, special } = this.statement;
        const name = this.statement.name ?? "caller";
        const keywords = new Map(args.keywords);
        const variables = new Map<string, Value>();
        const hasCaller = parameters.includes("caller");
        parameters.forEach((parameter, index) => {
            const value = index < args.positional.length ? args.positional[index] : keywords.get(parameter);
            if (value !== undefined) {
                variables.set(parameter, value);
            }
            if (index >= args.positional.length) {
                keywords.delete(parameter);
            }
        });
        if (special.has("caller") && !hasCaller) {
            const caller = keywords.get("caller");
            variables.set("caller", caller ?? NO_CALLER);
            keywords.delete("caller");
        }
        const [extra] = keywords.keys();
        if (special.has("kwargs")) {
            variables.set("kwargs", new Dict(keywords));
        } else if (extra !== undefined) {
            fail(`macro '${name}' takes no keyword argument '${extra}'`);
        }
        if (special.has("varargs")) {
            variables.set("varargs", new Tuple(args.positional.slice(parameters.length)));
        } else if (args.positional.length > parameters.length) {
            fail(`macro '${name}' takes not more than ${parameters.length} argument(s)`);
        }
        return this.run(variables);
    }
}
