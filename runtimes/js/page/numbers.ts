/** Numbers as texts for people. */

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** Return a number of bytes with a unit, such as "21.5 MiB". */
export function bytesText(bytes: number): string {
    let unit = 0;
    let value = bytes;
    while (unit < UNITS.length - 1 && (unit === 0 ? value >= 1024 : value >= 1023.95)) {
        value /= 1024;
        unit += 1;
    }
    return unit === 0 ? `${countText(value)} bytes` : `${value.toFixed(1)} ${UNITS[unit]!}`;
}

/** Return a whole number with commas between thousands. */
export function countText(count: number): string {
    return count.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** Return a part of a whole in percent. Only nothing is "0 %", and only everything is "100 %". */
export function shareText(part: number, whole: number): string {
    if (part <= 0 || whole <= 0) return "0 %";
    const percent = (100 * part) / whole;
    if (percent < 0.1) return "under 0.1 %";
    if (percent < 9.95) return `${percent.toFixed(1)} %`;
    if (percent < 100) return `${Math.min(99, Math.round(percent))} %`;
    return `${countText(percent)} %`;
}

/** Return a duration, such as "35 ms" or "1.2 s". */
export function durationText(seconds: number): string {
    return seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

/** Return a rate of tokens, such as "41.3 per second". "–" means that nothing was measured. */
export function rateText(tokens: number, seconds: number): string {
    if (tokens <= 0 || seconds <= 0) return "–";
    const rate = tokens / seconds;
    return `${rate < 99.95 ? rate.toFixed(1) : countText(rate)} per second`;
}

/** Return the names of counted things: `plural(1, "record")` is "1 record". */
export function plural(count: number, noun: string): string {
    return `${countText(count)} ${noun}${count === 1 ? "" : "s"}`;
}
