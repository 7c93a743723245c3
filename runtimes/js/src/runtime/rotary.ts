/** The rotation of vectors by their positions (docs/bundle-format.md, "Rotation"). */

/** Rotates vectors of an even size. */
export class Rotation {
    readonly #frequencies: Float64Array;
    readonly #cosines: Float32Array;
    readonly #sines: Float32Array;
    #position = -1;

    constructor(size: number, theta: number) {
        const half = size / 2;
        this.#frequencies = Float64Array.from({ length: half }, (_, i) => theta ** (-i / half));
        this.#cosines = new Float32Array(half);
        this.#sines = new Float32Array(half);
    }

    /** Rotate `count` vectors, which begin at number `begin` of `numbers`, in place. All have the same position. */
    rotate(numbers: Float32Array, begin: number, count: number, position: number): void {
        this.#moveTo(position);
        const cosines = this.#cosines;
        const sines = this.#sines;
        const half = cosines.length;
        const { fround } = Math;
        for (let vector = begin; vector < begin + count * 2 * half; vector += 2 * half) {
            for (let i = 0; i < half; i++) {
                const a = numbers[vector + i]!;
                const b = numbers[vector + half + i]!;
                // Each product is rounded to float32, and the array rounds the sum.
                numbers[vector + i] = fround(a * cosines[i]!) - fround(b * sines[i]!);
                numbers[vector + half + i] = fround(b * cosines[i]!) + fround(a * sines[i]!);
            }
        }
    }

    // All layers rotate the keys of one position one after the other, so the position seldom changes.
    #moveTo(position: number): void {
        if (position === this.#position) return;
        for (let i = 0; i < this.#frequencies.length; i++) {
            const angle = position * this.#frequencies[i]!;
            this.#cosines[i] = Math.cos(angle);
            this.#sines[i] = Math.sin(angle);
        }
        this.#position = position;
    }
}
