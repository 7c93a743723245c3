/** The tree of a template. */

/** How a scope finds the first value of one of its variables; see scopes.ts. */
export type Load = "outer" | "undefined" | "context";

/** The variables of a scope, except its parameters, and their first values. */
export type Loads = ReadonlyMap<string, Load>;

export interface CallArguments {
    readonly positional: readonly Expression[];
    readonly keywords: readonly { readonly name: string; readonly value: Expression }[];
    readonly list?: Expression | undefined;
    readonly dict?: Expression | undefined;
}

export type Constant = null | boolean | bigint | number | string;

export interface FilterExpression {
    readonly kind: "filter";
    readonly name: string;
    /** undefined: the text of a block. */
    readonly operand?: Expression | undefined;
    readonly call: CallArguments;
    readonly line: number;
}

export interface CallExpression {
    readonly kind: "call";
    readonly callee: Expression;
    readonly call: CallArguments;
    readonly line: number;
}

export interface Slice {
    readonly kind: "slice";
    readonly start: Expression | undefined;
    readonly stop: Expression | undefined;
    readonly step: Expression | undefined;
}

export type Expression =
    | { readonly kind: "constant"; readonly value: Constant }
    | { readonly kind: "name"; readonly name: string }
    | { readonly kind: "tuple" | "list" | "concat"; readonly items: readonly Expression[] }
    | { readonly kind: "dict"; readonly pairs: readonly (readonly [Expression, Expression])[] }
    | {
          readonly kind: "condition";
          readonly test: Expression;
          readonly then: Expression;
          readonly otherwise: Expression | undefined;
      }
    | { readonly kind: "and" | "or"; readonly left: Expression; readonly right: Expression }
    | { readonly kind: "not"; readonly operand: Expression }
    | { readonly kind: "sign"; readonly operator: "+" | "-"; readonly operand: Expression }
    | {
          readonly kind: "compare";
          readonly first: Expression;
          readonly rest: readonly { readonly operator: string; readonly right: Expression }[];
      }
    | {
          readonly kind: "binary";
          readonly operator: string;
          readonly left: Expression;
          readonly right: Expression;
          readonly line: number;
      }
    | { readonly kind: "attribute"; readonly object: Expression; readonly name: string }
    | { readonly kind: "item"; readonly object: Expression; readonly index: Expression | Slice }
    | CallExpression
    | FilterExpression
    | {
          readonly kind: "test";
          readonly name: string;
          readonly operand: Expression;
          readonly call: CallArguments;
          readonly line: number;
      };

export type Target =
    | { readonly kind: "name"; readonly name: string }
    | { readonly kind: "namespace"; readonly name: string; readonly attribute: string }
    | { readonly kind: "targets"; readonly items: readonly Target[] };

/** Statements with variables of their own. */
export interface Body {
    readonly statements: readonly Statement[];
    /** Set by `resolveScopes`. */
    loads: Loads;
}

export interface MacroStatement {
    readonly kind: "macro";
    /** "caller": the body of a call block. */
    readonly name: string | undefined;
    readonly parameters: readonly string[];
    /** The values of the last parameters. */
    readonly defaults: readonly Expression[];
    readonly body: Body;
    /** Which of `caller`, `kwargs` and `varargs` the body reads. Set by `resolveScopes`. */
    special: ReadonlySet<string>;
    readonly line: number;
}

export interface ForStatement {
    readonly kind: "for";
    readonly target: Target;
    readonly items: Expression;
    readonly test: Expression | undefined;
    readonly recursive: boolean;
    readonly body: Body;
    readonly otherwise: Body | undefined;
    readonly line: number;
}

export type Statement =
    | { readonly kind: "text"; readonly text: string }
    | { readonly kind: "print"; readonly value: Expression; readonly line: number }
    | {
          readonly kind: "if";
          readonly branches: readonly { readonly test: Expression; readonly statements: readonly Statement[] }[];
          readonly otherwise: readonly Statement[];
          readonly line: number;
      }
    | ForStatement
    | { readonly kind: "set"; readonly target: Target; readonly value: Expression; readonly line: number }
    | {
          readonly kind: "setBlock";
          readonly target: Target;
          readonly filter: FilterExpression | undefined;
          readonly body: Body;
          readonly line: number;
      }
    | {
          readonly kind: "with";
          readonly targets: readonly Target[];
          readonly values: readonly Expression[];
          readonly body: Body;
          readonly line: number;
      }
    | { readonly kind: "filterBlock"; readonly filter: FilterExpression; readonly body: Body; readonly line: number }
    | MacroStatement
    | {
          readonly kind: "callBlock";
          readonly call: CallExpression;
          readonly caller: MacroStatement;
          readonly line: number;
      }
    | { readonly kind: "generation"; readonly body: Body; readonly line: number }
    | { readonly kind: "break" | "continue" };

export interface Template {
    readonly body: Body;
}
