/** The arguments of functions, methods, filters and tests. */

import { fail } from "./failures.js";
import { isInteger, typeName, type Arguments, type Value } from "./values.js";

/**
 * Return the values of parameters in their order; undefined for those that are not given.
 *
 * @param names The parameters. Those after `positionalOnly` can be given by name.
 * @param required The number of parameters without a default.
 */
export function bind(
    callee: string,
    args: Arguments,
    names: readonly string[],
    required: number,
    positionalOnly = 0,
): (Value | undefined)[] {
    if (args.positional.length > names.length) {
        fail(`${callee}() takes at most ${names.length} arguments, found ${args.positional.length}`);
    }
    const values: (Value | undefined)[] = names.map((_, index) => args.positional[index]);
    for (const [name, value] of args.keywords) {
        const index = names.indexOf(name);
        if (index < positionalOnly) {
            fail(`${callee}() got an unexpected keyword argument '${name}'`);
        }
        if (index < args.positional.length) {
            fail(`${callee}() got multiple values for argument '${name}'`);
        }
        values[index] = value;
    }
    const missing = values.findIndex((value, index) => value === undefined && index < required);
    return missing < 0 ? values : fail(`${callee}() missing the argument '${names[missing]!}'`);
}

/** Return the values of parameters that cannot be given by name. */
export function bindPositional(callee: string, args: Arguments, required: number, most: number): (Value | undefined)[] {
    const names = Array.from({ length: most }, (_, index) => `argument ${index + 1}`);
    return bind(callee, args, names, required, most);
}

/** Return an int argument. */
export function integer(callee: string, value: Value): bigint {
    return isInteger(value)
        ? BigInt(value)
        : fail(`${callee}: '${typeName(value)}' object cannot be interpreted as an integer`);
}

/** Return an int argument, limited to indices that JavaScript can compute with. */
export function index(callee: string, value: Value): number {
    const limit = 2n ** 52n;
    const number = integer(callee, value);
    return Number(number > limit ? limit : number < -limit ? -limit : number);
}

/** Return an argument that is a text. */
export function text(callee: string, value: Value): string {
    return typeof value === "string" ? value : fail(`${callee}: expected str, found ${typeName(value)}`);
}
