/** Registers the service worker, which keeps the page's own files. */

const LONGEST_WAIT_MS = 3000;

/**
 * Wait until the service worker sees the requests of this page, so that it keeps all files of the first visit. Without
 * a service worker, or if it takes long, the page works all the same, but not offline.
 */
export async function keepPageOffline(): Promise<void> {
    if (!("serviceWorker" in navigator)) return; // not a secure context
    try {
        const { active } = await navigator.serviceWorker.register("service-worker.js", { updateViaCache: "none" });
        // A reload that goes around the service worker (Shift-reload) has an active one that does not control the page.
        if (navigator.serviceWorker.controller || active) return;
        await new Promise<void>((resolve) => {
            navigator.serviceWorker.addEventListener("controllerchange", () => {
                resolve();
            });
            setTimeout(resolve, LONGEST_WAIT_MS);
        });
    } catch (error) {
        console.warn("The page will not work offline:", error);
    }
}
