/** Draws the picture of the table. */

import type { Origin } from "./origins.js";
import type { TablePicture } from "./picture.js";

const GAP = 0.18; // of a square
const COLOURS = ["unused", "network", "cache", "memory", "glow"] as const;

type Colours = Readonly<Record<Origin | "unused" | "glow", string>>;

/** A canvas with the picture. It draws when `changed` was called, and while squares glow. */
export class PictureCanvas {
    readonly #canvas: HTMLCanvasElement;
    readonly #still = matchMedia("(prefers-reduced-motion: reduce)");
    #picture: TablePicture | undefined;
    #colours: Colours = coloursOfPage();
    #waits = false;

    constructor(canvas: HTMLCanvasElement) {
        this.#canvas = canvas;
        new ResizeObserver(() => {
            this.changed();
        }).observe(canvas);
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
            this.#colours = coloursOfPage();
            this.changed();
        });
    }

    /** Show a picture. */
    show(picture: TablePicture): void {
        this.#picture = picture;
        this.changed();
    }

    /** Draw at the next frame. */
    changed(): void {
        if (this.#waits) return;
        this.#waits = true;
        requestAnimationFrame(() => {
            this.#waits = false;
            const now = performance.now();
            this.#draw(now);
            if (!this.#still.matches && this.#picture?.glows(now)) this.changed();
        });
    }

    #draw(now: number): void {
        const [canvas, picture, context] = [this.#canvas, this.#picture, this.#canvas.getContext("2d")];
        if (!picture || !context || canvas.clientWidth === 0) return;
        const side = (canvas.clientWidth * devicePixelRatio) / picture.columns;
        const [width, height] = [Math.round(side * picture.columns), Math.round(side * picture.lines)];
        if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
        context.clearRect(0, 0, width, height);
        const fill = (index: number, colour: string, opacity: number): void => {
            context.fillStyle = colour;
            context.globalAlpha = opacity;
            const [x, y] = [(index % picture.columns) * side, Math.floor(index / picture.columns) * side];
            context.fillRect(x, y, side * (1 - GAP), side * (1 - GAP));
        };
        for (let index = 0; index < picture.squares; index++) fill(index, this.#colours.unused, 1);
        for (const { index, origin, glow } of picture.lit(now)) {
            fill(index, this.#colours[origin], 1);
            if (glow > 0 && !this.#still.matches) fill(index, this.#colours.glow, glow);
        }
    }
}

/** Return the colours of the style sheet, which has them for light and dark pages. */
function coloursOfPage(): Colours {
    const style = getComputedStyle(document.documentElement);
    const entries = COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()] as const);
    return Object.fromEntries(entries) as unknown as Colours;
}
