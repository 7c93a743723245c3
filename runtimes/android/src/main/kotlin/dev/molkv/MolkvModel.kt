// Open models.
package dev.molkv

import java.io.File
import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.locks.ReentrantReadWriteLock
import kotlin.concurrent.read
import kotlin.concurrent.write

/**
 * An open bundle: its graphs, its expert store and its tokenizer.
 *
 * Threads may share a model; each uses its own session. All functions block, so call them outside the main thread. They
 * throw a [MolkvException].
 */
class MolkvModel private constructor(private var handle: Long) : AutoCloseable {
    private val lock = ReentrantReadWriteLock() // written by calls during which no other call may run
    private val sessions = ConcurrentHashMap.newKeySet<MolkvSession>()

    private val facts = Native.facts(handle).decodeToString().removeSuffix("\u0000").split('\u0000')

    /** The sampling that the bundle recommends. `copy` changes single values, such as the seed. */
    val defaultSampling: Sampling = facts.let {
        Sampling(it[0].toDouble(), it[1].toInt(), it[2].toDouble(), it[3].toDouble(), it[4].toDouble())
    }

    /** Facts about the model. */
    val info: ModelInfo = facts.drop(5).let {
        ModelInfo(
            it[0], it[1], it[2], it[3], it[4], it[5], it[6].toInt(), it[7].toInt(), it[8].toInt(), it[9] != "0",
            it[10].toLong(), it[11].toLong(), it[12].toLong(), it.drop(13).map(String::toInt),
        )
    }

    /**
     * Hash every file of the bundle, and run its golden vectors. Other calls with the model wait meanwhile.
     *
     * Returns a report with one line for each check. If a check fails, the message of the exception has the report.
     */
    fun selfTest(): String = lock.write { call(Native::selfTest).decodeToString() }

    /** Convert a text to token ids. With [addSpecialTokens] they are those of the first prompt of a session. */
    fun tokenize(text: String, addSpecialTokens: Boolean = true): IntArray =
        call { Native.tokenize(it, text.utf8(), addSpecialTokens) }

    /** Create a session of empty sequences, and allocate all its memory. */
    fun session(options: SessionOptions = SessionOptions()): MolkvSession = call {
        val session = Native.createSession(it, options.batchSize, options.maxLength, options.prefillChunk)
        MolkvSession(this, session).also(sessions::add)
    }

    /** Close the model and its sessions. Running generations end early. A second call does nothing. */
    override fun close() {
        sessions.forEach(MolkvSession::close) // so that the lock does not wait for the end of their calls
        lock.write {
            sessions.forEach(MolkvSession::close)
            Native.free(model = handle)
            handle = 0
        }
    }

    internal fun <T> call(body: (Long) -> T): T = lock.read {
        if (handle == 0L) throw MolkvException.Closed("the model is closed")
        body(handle)
    }

    internal fun forget(session: MolkvSession) = sessions.remove(session)

    companion object {
        /** Open the bundle in a folder, check it, and load its graphs. */
        fun open(folder: File, options: ModelOptions = ModelOptions()): MolkvModel = open(folder.path, null, options)

        /** Open a bundle whose files [files] opens. An exception of [files] is passed on. */
        fun open(files: FileOpener, options: ModelOptions = ModelOptions()): MolkvModel = open(null, files, options)

        private fun open(folder: String?, files: FileOpener?, options: ModelOptions): MolkvModel {
            val onnxruntime = System.getProperty("molkv.onnxruntime") ?: "libonnxruntime.so"
            val pairs = options.providerOptions.flatMap { listOf(it.key, it.value) }
            val texts = (listOf(options.profile.orEmpty(), options.provider) + pairs).utf8()
            val path = folder?.let { listOf(it).utf8() }
            return MolkvModel(
                Native.open(
                    onnxruntime.utf8(), path, files, texts, options.threads, options.requireProvider,
                    options.skipProviderCheck,
                ),
            )
        }
    }
}
