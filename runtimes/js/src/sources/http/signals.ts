/** Signals that end with other signals. (AbortSignal.any is missing in browsers of 2023.) */

/** A signal that ends when one of its parents ends, or by `abort`. `release` forgets the parents. */
export interface LinkedSignal {
    readonly signal: AbortSignal;
    abort(reason: unknown): void;
    release(): void;
}

export function linkSignals(...parents: readonly (AbortSignal | undefined)[]): LinkedSignal {
    const controller = new AbortController();
    const releases: (() => void)[] = [];
    for (const parent of parents) {
        if (parent === undefined) continue;
        const follow = (): void => {
            controller.abort(parent.reason);
        };
        if (parent.aborted) follow();
        parent.addEventListener("abort", follow);
        releases.push(() => {
            parent.removeEventListener("abort", follow);
        });
    }
    return {
        signal: controller.signal,
        abort: (reason) => {
            controller.abort(reason);
        },
        release: () => {
            for (const release of releases) release();
        },
    };
}

/** Wait for some milliseconds, or throw the signal's reason. */
export async function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    await new Promise<void>((resolve) => {
        const end = (): void => {
            clearTimeout(timer);
            signal?.removeEventListener("abort", end);
            resolve();
        };
        const timer = setTimeout(end, milliseconds);
        signal?.addEventListener("abort", end);
    });
    signal?.throwIfAborted();
}
