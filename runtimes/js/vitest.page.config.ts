import { defineConfig } from "vitest/config";

/** The tests of the built page in Chromium. `make test-page` prepares what they need. */
export default defineConfig({
    test: { include: ["tests/page/*.test.ts"], testTimeout: 60_000, hookTimeout: 60_000, fileParallelism: false },
});
