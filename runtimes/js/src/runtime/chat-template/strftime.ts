/** The function `strftime_now`: a local time as Python writes it, without the names of a time zone. */

import { unsupported } from "./failures.js";

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const COMPOSED: Readonly<Record<string, string>> = {
    c: "%a %b %e %H:%M:%S %Y",
    D: "%m/%d/%y",
    F: "%Y-%m-%d",
    R: "%H:%M",
    r: "%I:%M:%S %p",
    T: "%H:%M:%S",
    x: "%m/%d/%y",
    X: "%H:%M:%S",
};

function pad(value: number, width = 2, fill = "0"): string {
    return value.toString().padStart(width, fill);
}

/** Return the days since the first of January. */
function dayOfYear(time: Date): number {
    const start = Date.UTC(time.getFullYear(), 0, 1);
    return Math.round((Date.UTC(time.getFullYear(), time.getMonth(), time.getDate()) - start) / 86_400_000);
}

/** Return the year and the week of ISO 8601. */
function isoWeek(time: Date): [number, number] {
    // The week belongs to the year of its Thursday.
    const thursday = new Date(time.getFullYear(), time.getMonth(), time.getDate() - ((time.getDay() + 6) % 7) + 3);
    return [thursday.getFullYear(), Math.floor(dayOfYear(thursday) / 7) + 1];
}

const DIRECTIVES: Readonly<Record<string, (time: Date) => string>> = {
    "%": () => "%",
    a: (time) => DAYS[time.getDay()]!.slice(0, 3),
    A: (time) => DAYS[time.getDay()]!,
    b: (time) => MONTHS[time.getMonth()]!.slice(0, 3),
    B: (time) => MONTHS[time.getMonth()]!,
    C: (time) => pad(Math.floor(time.getFullYear() / 100)),
    d: (time) => pad(time.getDate()),
    e: (time) => pad(time.getDate(), 2, " "),
    f: (time) => pad(time.getMilliseconds() * 1000, 6),
    G: (time) => isoWeek(time)[0].toString(),
    g: (time) => pad(isoWeek(time)[0] % 100),
    H: (time) => pad(time.getHours()),
    h: (time) => MONTHS[time.getMonth()]!.slice(0, 3),
    I: (time) => pad(((time.getHours() + 11) % 12) + 1),
    j: (time) => pad(dayOfYear(time) + 1, 3),
    k: (time) => pad(time.getHours(), 2, " "),
    l: (time) => pad(((time.getHours() + 11) % 12) + 1, 2, " "),
    m: (time) => pad(time.getMonth() + 1),
    M: (time) => pad(time.getMinutes()),
    n: () => "\n",
    p: (time) => (time.getHours() < 12 ? "AM" : "PM"),
    P: (time) => (time.getHours() < 12 ? "am" : "pm"),
    s: (time) => Math.floor(time.getTime() / 1000).toString(),
    S: (time) => pad(time.getSeconds()),
    t: () => "\t",
    u: (time) => (((time.getDay() + 6) % 7) + 1).toString(),
    U: (time) => pad(Math.floor((dayOfYear(time) + 7 - time.getDay()) / 7)),
    V: (time) => pad(isoWeek(time)[1]),
    w: (time) => time.getDay().toString(),
    W: (time) => pad(Math.floor((dayOfYear(time) + 7 - ((time.getDay() + 6) % 7)) / 7)),
    y: (time) => pad(time.getFullYear() % 100),
    Y: (time) => time.getFullYear().toString(),
    z: () => "",
    Z: () => "",
};

/**
 * Return a time in a format of `strftime`.
 *
 * @throws TemplateFailure The format has a directive that this driver does not have.
 */
export function strftime(format: string, time: Date): string {
    return format.replace(/%([-_0^#]?[^]?)/g, (_, directive: string): string => {
        const composed = COMPOSED[directive];
        if (Object.hasOwn(COMPOSED, directive) && composed !== undefined) {
            return strftime(composed, time);
        }
        const short = /^-[dHIjmMSUWyekl]$/.test(directive) ? directive.slice(1) : undefined;
        if (short !== undefined) {
            return DIRECTIVES[short]!(time).replace(/^[0 ]+(?=\d)/, "");
        }
        return Object.hasOwn(DIRECTIVES, directive)
            ? DIRECTIVES[directive]!(time)
            : unsupported(`the directive %${directive} of strftime_now`);
    });
}
