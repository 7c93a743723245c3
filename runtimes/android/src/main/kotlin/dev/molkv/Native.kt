// The functions of molkv_jni.cpp, and those that it calls. Texts cross JNI as UTF-8, objects of the library as numbers.
package dev.molkv

internal object Native {
    init {
        System.getProperty("molkv.library")?.let { System.load(it) } ?: System.loadLibrary("molkv_jni")
    }

    @JvmStatic external fun open(
        onnxruntime: ByteArray, folder: ByteArray?, files: FileOpener?, texts: ByteArray, threads: Int,
        requireProvider: Boolean, skipProviderCheck: Boolean,
    ): Long
    @JvmStatic external fun facts(model: Long): ByteArray
    @JvmStatic external fun selfTest(model: Long): ByteArray
    @JvmStatic external fun tokenize(model: Long, text: ByteArray, addSpecialTokens: Boolean): IntArray
    @JvmStatic external fun createSession(model: Long, batchSize: Int, maxLength: Int, prefillChunk: Int): Long
    @JvmStatic external fun cancel(session: Long)
    @JvmStatic external fun ids(session: Long, sequence: Int): IntArray
    @JvmStatic external fun rewind(session: Long, sequence: Int, length: Int)
    @JvmStatic external fun fork(session: Long, sequence: Int): Int
    @JvmStatic external fun save(session: Long, sequence: Int, path: ByteArray)
    @JvmStatic external fun restore(session: Long, sequence: Int, path: ByteArray)
    @JvmStatic external fun generate(
        session: Long, ids: IntArray, lengths: IntArray, maxNewTokens: Int, sampling: DoubleArray, seed: Long,
        stopIds: IntArray?, stop: ByteArray,
    ): Long
    @JvmStatic external fun next(generation: Long): Token?
    @JvmStatic external fun free(generation: Long = 0, session: Long = 0, model: Long = 0)

    @JvmStatic fun error(status: Int, message: ByteArray): MolkvException = message.decodeToString().let {
        when (status) {
            1 -> MolkvException.Bundle(it)
            2 -> MolkvException.Request(it)
            3 -> MolkvException.Provider(it)
            4 -> MolkvException.Memory(it)
            5 -> MolkvException.Cancelled(it)
            else -> MolkvException.Internal(it)
        }
    }

    @JvmStatic fun openFile(files: FileOpener, name: ByteArray): LongArray? =
        files.open(name.decodeToString())?.run { longArrayOf(fd.toLong(), offset, length) }

    @JvmStatic fun token(sequence: Int, id: Int, text: ByteArray, finish: Int): Token =
        Token(sequence, id, text.decodeToString(), Finish.entries[finish])
}

/** Encode a text as UTF-8. */
internal fun String.utf8(): ByteArray = try {
    encodeToByteArray(throwOnInvalidSequence = true)
} catch (_: CharacterCodingException) {
    throw MolkvException.Request("a text has half of a surrogate pair, expected whole Unicode characters")
}

/** Encode texts that become C strings: each one ends with a NUL. */
internal fun List<String>.utf8(): ByteArray {
    if (any { '\u0000' in it }) throw MolkvException.Request("a path, option or stop string has a NUL, expected none")
    return joinToString("") { "$it\u0000" }.utf8()
}
