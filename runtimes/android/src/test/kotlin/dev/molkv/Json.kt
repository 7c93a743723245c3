// A small JSON reader for the test, which has no library for it.
package dev.molkv

/** Reads a JSON text that is known to be valid: maps, lists, strings, doubles, booleans and null. */
class Json private constructor(private val text: String) {
    private var at = 0

    private fun peek(): Char {
        while (text[at].isWhitespace()) at++
        return text[at]
    }

    private fun take(expected: Char): Boolean = (peek() == expected).also { if (it) at++ }

    private fun value(): Any? = when (peek()) {
        '{' -> buildMap {
            items('}') {
                val name = string()
                check(take(':'))
                put(name, value())
            }
        }
        '[' -> buildList { items(']') { add(value()) } }
        '"' -> string()
        else -> word()
    }

    private fun items(end: Char, item: () -> Unit) {
        at++
        if (take(end)) return
        do item() while (take(','))
        check(take(end))
    }

    private fun word(): Any? {
        val start = at
        while (at < text.length && text[at] !in ",]} \n") at++
        return when (val word = text.substring(start, at)) {
            "true" -> true
            "false" -> false
            "null" -> null
            else -> word.toDouble()
        }
    }

    private fun string(): String = buildString {
        check(take('"'))
        while (text[at] != '"') {
            if (text[at] != '\\') append(text[at++]) else append(escaped())
        }
        at++
    }

    private fun escaped(): Char {
        at += 2
        return when (val letter = text[at - 1]) {
            'n' -> '\n'
            't' -> '\t'
            'r' -> '\r'
            'b' -> '\b'
            'f' -> '\u000c'
            'u' -> text.substring(at, at + 4).toInt(16).toChar().also { at += 4 }
            else -> letter
        }
    }

    companion object {
        fun parse(text: String): Any? = Json(text).value()
    }
}
