import { expect, it } from "vitest";

import { strftime } from "../../../src/runtime/chat-template/strftime.js";

// The expected texts are those of Python's datetime.strftime with glibc.
it.each([
    ["%Y-%m-%d %H:%M:%S", "2024-01-07 00:05:09"],
    ["%d %b %Y|%B %A %a", "07 Jan 2024|January Sunday Sun"],
    ["%I %p %j %U %W %V %G %u %w %y %e %-d %%", "12 AM 007 01 01 01 2024 7 0 24  7 7 %"],
    ["%D %F %T %R %Z%z", "01/07/24 2024-01-07 00:05:09 00:05 "],
])("%s", (format, expected) => {
    expect(strftime(format, new Date(2024, 0, 7, 0, 5, 9))).toBe(expected);
});

it("refuses a directive that it does not have", () => {
    expect(() => strftime("%Q", new Date())).toThrow("the directive %Q of strftime_now is not supported");
    expect(() => strftime("%", new Date())).toThrow("is not supported");
});
