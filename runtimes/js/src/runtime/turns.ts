/** Turns: what uses the graph of a model runs one after the other. */

import { RequestError } from "../errors.js";

/** Runs actions one after the other. */
export interface TurnTaker {
    run<T>(action: () => Promise<T>, signal?: AbortSignal): Promise<T>;
}

export class Turns implements TurnTaker {
    #last: Promise<unknown> = Promise.resolve();
    #isClosed = false;

    /**
     * Run `action` after all earlier actions have ended. If `signal` aborts before that, `action` is never run. A running
     * action has to watch the signal itself.
     *
     * @throws RequestError The model was closed before the turn.
     */
    run<T>(action: () => Promise<T>, signal?: AbortSignal): Promise<T> {
        return new Promise((resolve, reject) => {
            const abort = (): void => {
                reject(signal!.reason as Error);
            };
            signal?.addEventListener("abort", abort);
            const result = this.#last.then(() => {
                signal?.removeEventListener("abort", abort);
                signal?.throwIfAborted();
                this.checkOpen();
                return action();
            });
            this.#last = result.catch(() => undefined);
            result.then(resolve, reject);
        });
    }

    /** Run `action` after all earlier actions have ended, also if the model was closed. */
    release(action: () => void): Promise<void> {
        const result = this.#last.then(action);
        this.#last = result.catch(() => undefined);
        return result;
    }

    /** @throws RequestError The model was closed. */
    checkOpen(): void {
        if (this.#isClosed) throw new RequestError("the model is closed; open it again");
    }

    /** Refuse all later turns, and wait for the running one. */
    async close(): Promise<void> {
        this.#isClosed = true;
        await this.#last;
    }
}
