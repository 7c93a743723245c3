/** A failure of a template: broken syntax, an operation that is impossible, or an exceeded limit. */
export class TemplateFailure extends Error {}

/** A template called `raise_exception`. */
export class TemplateRefusal extends Error {}

/** Raise a failure. */
export function fail(message: string): never {
    throw new TemplateFailure(message);
}

/** Raise a failure for a part of Jinja or Python that this driver does not have, so that it renders no wrong text. */
export function unsupported(what: string): never {
    throw new TemplateFailure(`${what} is not supported by this driver`);
}
