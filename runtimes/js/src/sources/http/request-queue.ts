/** Limits how many requests run at once, and lets those of the background wait for the others. */

interface Waiting {
    readonly background: boolean;
    readonly start: () => void;
}

export class RequestQueue {
    private running = 0;
    private waiting: Waiting[] = [];

    constructor(private readonly limit: number) {}

    /** Run a task when there is room. A task of the background runs only while no other task runs or waits. */
    async run<T>(background: boolean, signal: AbortSignal | undefined, task: () => Promise<T>): Promise<T> {
        await this.enter(background, signal);
        try {
            return await task();
        } finally {
            this.running--;
            this.startNext();
        }
    }

    private async enter(background: boolean, signal: AbortSignal | undefined): Promise<void> {
        signal?.throwIfAborted();
        await new Promise<void>((resolve, reject) => {
            const leave = (): void => {
                this.waiting = this.waiting.filter((one) => one !== entry);
                // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- a reason may be anything
                reject(signal?.reason);
            };
            const start = (): void => {
                signal?.removeEventListener("abort", leave);
                this.running++;
                resolve();
            };
            const entry = { background, start };
            signal?.addEventListener("abort", leave);
            this.waiting.push(entry);
            this.startNext();
        });
    }

    private startNext(): void {
        while (this.running < this.limit) {
            let index = this.waiting.findIndex((one) => !one.background);
            if (index < 0 && this.running === 0) index = 0;
            const [next] = index < 0 ? [] : this.waiting.splice(index, 1);
            if (next === undefined) return;
            next.start();
        }
    }
}
