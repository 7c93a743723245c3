/** Starts the Chromium of the system, headless, with a fresh profile. */

import { existsSync } from "node:fs";

import { chromium, type Browser } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

export interface LaunchOptions {
    /** Turn on WebGPU on the CPU (SwiftShader). */
    readonly webgpu?: boolean;
    /** Accept every certificate, also for service workers, for which a browser context cannot. */
    readonly anyCertificate?: boolean;
}

/** Launch the browser. */
export async function launchChromium(options: LaunchOptions = {}): Promise<Browser> {
    const executablePath = process.env.CHROMIUM ?? PLACES.find(existsSync);
    if (executablePath === undefined) {
        throw new Error(`no Chromium in ${PLACES.join(", ")}; install it, or set CHROMIUM to its path`);
    }
    return chromium.launch({
        executablePath,
        args: [
            "--no-sandbox",
            "--disable-background-networking",
            ...(options.anyCertificate ? ["--ignore-certificate-errors"] : []),
            ...(options.webgpu
                ? ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
                : ["--disable-gpu"]),
        ],
    });
}
