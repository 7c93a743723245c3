import { expect, test } from "vitest";

import { bytesText, countText, durationText, plural, rateText, shareText } from "../../../page/numbers.js";

test.each([
    [0, "0 bytes"],
    [1023, "1,023 bytes"],
    [1024, "1.0 KiB"],
    [1024 * 1024 - 1, "1.0 MiB"],
    [22_544_384, "21.5 MiB"],
    [4 * 1024 ** 3, "4.0 GiB"],
    [5000 * 1024 ** 4, "5000.0 TiB"],
])("%d bytes are %s", (bytes, text) => {
    expect(bytesText(bytes)).toBe(text);
});

test.each([
    [0, 100, "0 %"],
    [1, 10_000, "under 0.1 %"],
    [1, 100, "1.0 %"],
    [99.96, 1000, "10 %"],
    [999, 1000, "99 %"],
    [1000, 1000, "100 %"],
    [1500, 1000, "150 %"],
    [1, 0, "0 %"],
])("%d of %d is %s", (part, whole, text) => {
    expect(shareText(part, whole)).toBe(text);
});

test("durations, rates and counts have units", () => {
    expect(durationText(0.0354)).toBe("35 ms");
    expect(durationText(0.9996)).toBe("1.0 s");
    expect(rateText(127, 3)).toBe("42.3 per second");
    expect(rateText(4000, 2)).toBe("2,000 per second");
    expect(rateText(0, 1)).toBe("–");
    expect(countText(1234567)).toBe("1,234,567");
    expect([plural(1, "record"), plural(0, "record")]).toEqual(["1 record", "0 records"]);
});
