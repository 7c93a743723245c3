/** What functions, methods, filters and tests need from a rendering. */

import type { Work } from "./limits.js";
import type { Arguments, Value } from "./values.js";

export interface Engine {
    readonly work: Work;
    /** Return `value.name`. */
    attribute(value: Value, name: string): Value;
    /** Return `value[index]`. */
    item(value: Value, index: Value): Value;
    /** Apply a filter. */
    filter(name: string, value: Value, args: Arguments): Value;
    /** Apply a test. */
    test(name: string, value: Value, args: Arguments): boolean;
}

/** A filter of Jinja, or a method of a value of Python. */
export type Operation = (engine: Engine, value: Value, args: Arguments) => Value;
