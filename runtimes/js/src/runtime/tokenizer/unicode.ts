/**
 * Character classes and NFC as in Hugging Face's tokenizers library 0.23.
 *
 * The library has the classes of Unicode 16 and an older NFC. JavaScript engines have other versions of Unicode: Node 20
 * has 15.1 to 17. So the classes are those of the engine, with the differences between Unicode 14 and 17 added here. The
 * ranges are joined over code points where this changes nothing. tests/unit/runtime/unicode.test.ts compares all code
 * points with the tables of the C++ driver, and prints the differences.
 */

/** What the expressions of pre-tokenizers distinguish. */
export const Class = { letter: 1, number: 2, space: 3, newline: 4, other: 5, end: 6 } as const;

// A character that is in the second class but not in the first one, which has the characters of Unicode 17.
const letter =
    /^(?![\u088f\u0c5c\u0cdc\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1\u{10940}-\u{10959}\u{10ec5}-\u{10ec7}\u{11db0}-\u{11ddb}\u{16ea0}-\u{16ed3}\u{16ff2}\u{16ff3}\u{187f8}-\u{187ff}\u{18d09}-\u{18df2}\u{1e6c0}-\u{1e6ff}\u{2b73a}-\u{2b73f}\u{2cea2}-\u{2cead}\u{323b0}-\u{33479}])[\p{L}\u1c89\u1c8a\ua7cb-\ua7cd\ua7da-\ua7dc\u{105c0}-\u{105f3}\u{10d4a}-\u{10d65}\u{10d6f}-\u{10d85}\u{10ec2}-\u{10ec4}\u{1123f}\u{11240}\u{11380}-\u{11389}\u{1138b}\u{1138e}\u{11390}-\u{113b5}\u{113b7}\u{113d1}\u{113d3}\u{11bc0}-\u{11be0}\u{11f02}\u{11f04}-\u{11f10}\u{11f12}-\u{11f33}\u{1342f}\u{13441}-\u{13446}\u{13460}-\u{143fa}\u{16100}-\u{1611d}\u{16d40}-\u{16d6c}\u{18cff}\u{1b132}\u{1b155}\u{1df25}-\u{1df2a}\u{1e030}-\u{1e06d}\u{1e4d0}-\u{1e4eb}\u{1e5d0}-\u{1e5ed}\u{1e5f0}\u{2b739}\u{2ebf0}-\u{2ee5d}\u{31350}-\u{323af}]/u;
const number =
    /^(?![\u{11de0}-\u{11de9}\u{16ff4}-\u{16ff6}])[\p{N}\u{10d40}-\u{10d49}\u{116d0}-\u{116e3}\u{11bf0}-\u{11bf9}\u{11f50}-\u{11f59}\u{16130}-\u{16139}\u{16d70}-\u{16d79}\u{1ccf0}-\u{1ccf9}\u{1d2c0}-\u{1d2d3}\u{1e4f0}-\u{1e4f9}\u{1e5f1}-\u{1e5fa}]/u;
const wordCharacter =
    /^(?![\u088f\u0c5c\u0cdc\u1acf-\u1aeb\ua7ce\ua7cf\ua7d2\ua7d4\ua7f1\u{10940}-\u{10959}\u{10ec5}-\u{10efb}\u{11b60}-\u{11b67}\u{11db0}-\u{11de9}\u{16ea0}-\u{16ed3}\u{16ff2}-\u{16ff6}\u{187f8}-\u{187ff}\u{18d09}-\u{18df2}\u{1e6c0}-\u{1e6ff}\u{2b73a}-\u{2b73f}\u{2cea2}-\u{2cead}\u{323b0}-\u{33479}])[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\u0897\u0cf3\u0ece\u1c89\u1c8a\ua7cb-\ua7cd\ua7da-\ua7dc\u{105c0}-\u{105f3}\u{10d40}-\u{10d65}\u{10d69}-\u{10d6d}\u{10d6f}-\u{10d85}\u{10ec2}-\u{10ec4}\u{10efc}-\u{10eff}\u{1123f}-\u{11241}\u{11380}-\u{11389}\u{1138b}\u{1138e}\u{11390}-\u{113b5}\u{113b7}-\u{113c0}\u{113c2}\u{113c5}\u{113c7}-\u{113ca}\u{113cc}-\u{113d3}\u{113e1}\u{113e2}\u{116d0}-\u{116e3}\u{11bc0}-\u{11be0}\u{11bf0}-\u{11bf9}\u{11f00}-\u{11f10}\u{11f12}-\u{11f3a}\u{11f3e}-\u{11f42}\u{11f50}-\u{11f5a}\u{1342f}\u{13440}-\u{13455}\u{13460}-\u{143fa}\u{16100}-\u{16139}\u{16d40}-\u{16d6c}\u{16d70}-\u{16d79}\u{18cff}\u{1b132}\u{1b155}\u{1ccf0}-\u{1ccf9}\u{1df25}-\u{1df2a}\u{1e030}-\u{1e06d}\u{1e08f}\u{1e4d0}-\u{1e4f9}\u{1e5d0}-\u{1e5fa}\u{2b739}\u{2ebf0}-\u{2ee5d}\u{31350}-\u{323af}]/u;
const space = /^[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/;

// Characters that the NFC of the library leaves where they are: newer marks, and first parts of newer compositions.
const outsideNfc =
    /([\u07fd\u0897-\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf-\u1aeb\u1df6-\u1dfa\ua82c\u{105c9}-\u{105e4}\u{10d24}-\u{10f85}\u{11070}\u{1133b}\u{11382}-\u{113d0}\u{1145e}\u{11839}-\u{11a99}\u{11d42}-\u{1612f}\u{16d63}-\u{16ff1}\u{1e08f}-\u{1e6f5}]+)/u;

const classes = new Uint8Array(0x110000); // of the code points that were asked for; 0: not yet

function findClass(code: number): number {
    if (code === 10 || code === 13) return Class.newline;
    const character = String.fromCodePoint(code);
    if (letter.test(character)) return Class.letter;
    if (number.test(character)) return Class.number;
    return space.test(character) ? Class.space : Class.other;
}

/** Return the class of a code point, one of `Class`. */
export function classOf(code: number): number {
    return (classes[code] ||= findClass(code));
}

/** Whether a text begins with white space. */
export function startsWithSpace(text: string): boolean {
    return space.test(text);
}

/** Whether a text begins with a character of a word: at the borders of an added token with `single_word`. */
export function startsWithWord(text: string): boolean {
    return wordCharacter.test(text);
}

/** Return the normalization form NFC of a text. */
export function nfc(text: string): string {
    return text
        .split(outsideNfc)
        .map((part, index) => (index % 2 === 0 ? part.normalize("NFC") : part))
        .join("");
}
