// Sessions and their generations.
package dev.molkv

import java.io.File
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.job
import kotlinx.coroutines.withContext

/**
 * Texts that grow: token ids, KV cache and experts of each sequence.
 *
 * Calls from several threads run one after the other. All functions but [generate] block, so call them outside the main
 * thread. They throw a [MolkvException].
 */
class MolkvSession internal constructor(private val model: MolkvModel, private var handle: Long) : AutoCloseable {
    private val calls = ReentrantLock() // held while the library uses the session
    private val generations = mutableSetOf<Generation>() // those of the library; guarded by `calls`
    private val state = Any() // guards the fields below
    private var running: Any? = null // the call that runs
    private var closed = false

    /**
     * Continue a text. The flow is cold: each collection appends the prompt to the sequence, then new tokens.
     *
     * Tokens are computed on [Dispatchers.IO], each one after the collector has taken the one before. If the coroutine
     * of the collector is cancelled, a running call ends early. The session then has the collected tokens, and at most
     * one more, which was computed meanwhile.
     */
    fun generate(prompt: String, options: GenerationOptions = GenerationOptions()): Flow<Token> =
        generate(listOf(Prompt(prompt)), options)

    /** Continue several texts together, one for each sequence. Prompt i is appended to sequence i. */
    fun generate(prompts: List<Prompt>, options: GenerationOptions = GenerationOptions()): Flow<Token> = flow {
        val generation = Generation(prompts, options)
        try {
            while (true) emit(withContext(Dispatchers.IO) { generation.next(coroutineContext.job) } ?: break)
        } catch (error: MolkvException.Cancelled) {
            currentCoroutineContext().ensureActive() // throws the exception of a cancelled coroutine
            throw error
        } finally {
            withContext(NonCancellable + Dispatchers.IO) { calls.withLock(generation::free) }
        }
    }

    /** Return the token ids of a sequence: those of prompts, and those that were generated. */
    fun ids(sequence: Int = 0): IntArray = call { Native.ids(it, sequence) }

    /** Shorten a sequence to its first [length] tokens. Length 0 frees the sequence. */
    fun rewind(length: Int, sequence: Int = 0): Unit = call { Native.rewind(it, sequence, length) }

    /** Copy a sequence to the first free (empty) sequence. Returns the index of the copy. */
    fun fork(sequence: Int = 0): Int = call { Native.fork(it, sequence) }

    /** Save a sequence to a file that every driver can restore. The file appears when it is complete. */
    fun save(file: File, sequence: Int = 0): Unit = call { Native.save(it, sequence, listOf(file.path).utf8()) }

    /** Restore a saved file into an empty sequence. */
    fun restore(file: File, sequence: Int = 0): Unit = call { Native.restore(it, sequence, listOf(file.path).utf8()) }

    /** Free the session. A running call ends early, and its generation fails. A second call does nothing. */
    override fun close() {
        synchronized(state) {
            closed = true
            running?.let(::interrupt)
        }
        calls.withLock {
            generations.toList().forEach(Generation::free)
            Native.free(session = handle)
            handle = 0
        }
        model.forget(this)
    }

    private fun interrupt(owner: Any) = synchronized(state) { if (running === owner) Native.cancel(handle) }

    private fun <T> call(owner: Any = Any(), body: (Long) -> T): T = model.call {
        calls.withLock {
            synchronized(state) {
                if (closed) throw MolkvException.Closed("the session is closed")
                running = owner
            }
            try {
                body(handle)
            } finally {
                synchronized(state) { running = null }
            }
        }
    }

    /** A generation of the library, which starts with the first token. */
    private inner class Generation(private val prompts: List<Prompt>, private val options: GenerationOptions) {
        private var handle = 0L

        /** Return the next token, or null after the last one. The end of [job] ends the call early. */
        fun next(job: Job): Token? = call(this) { session ->
            val watch = Job(job)
            watch.invokeOnCompletion { if (it != null) interrupt(this) }
            try {
                if (handle == 0L) start(session)
                Native.next(handle)
            } catch (error: MolkvException) {
                free()
                throw error
            } finally {
                watch.complete()
                synchronized(state) { running = null } // nothing interrupts this call from here on
                if (!job.isActive) free() // with an interruption that came too late
            }
        }

        fun free() {
            Native.free(generation = handle)
            handle = 0
            generations -= this
        }

        private fun start(session: Long) {
            val ids = prompts.mapIndexed { sequence, prompt ->
                prompt.encode(model, Native.ids(session, sequence).isEmpty())
            }
            val sampling = options.sampling ?: model.defaultSampling
            val numbers = with(sampling) {
                doubleArrayOf(
                    temperature, topK.toDouble(), topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty,
                )
            }
            val biases = sampling.logitBias.flatMap { listOf(it.key.toDouble(), it.value) }
            handle = Native.generate(
                session, ids.flatMap(IntArray::asList).toIntArray(), IntArray(ids.size) { ids[it].size },
                options.maxNewTokens, numbers + biases, sampling.seed.toLong(), options.stopIds?.toIntArray(),
                options.stop.utf8(),
            )
            generations += this
        }
    }
}
