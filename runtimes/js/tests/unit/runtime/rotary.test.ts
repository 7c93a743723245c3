import { describe, expect, it } from "vitest";

import { Rotation } from "../../../src/runtime/rotary.js";

describe("Rotation", () => {
    it("rotates a vector as the Python driver does, to the bit", () => {
        const numbers = Float32Array.of(9, 0.1, -2.5, 3.25, 0.7, 1.5, -0.3, 9);
        new Rotation(6, 10000).rotate(numbers, 1, 1, 1000);
        expect([...numbers]).toEqual([
            9, -0.5225777626037598, 0.9236823916435242, -1.5406179428100586, 0.4763532876968384, -2.765286445617676,
            2.8773245811462402, 9,
        ]);
    });

    it("rotates each vector of a position, and positions in any order", () => {
        const rotation = new Rotation(2, 10000);
        const numbers = Float32Array.of(1, 0, 0, 1);
        rotation.rotate(numbers, 0, 2, 3);
        const [cos, sin] = [Math.fround(Math.cos(3)), Math.fround(Math.sin(3))];
        expect([...numbers]).toEqual([cos, sin, -sin, cos]);
        rotation.rotate(numbers, 0, 2, 0);
        expect([...numbers]).toEqual([cos, sin, -sin, cos]);
    });
});
