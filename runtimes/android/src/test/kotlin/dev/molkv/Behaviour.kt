// Tests of the Kotlin API itself: flows, closing, errors, files and Unicode.
package dev.molkv

import java.io.File
import java.io.FileDescriptor
import java.io.FileInputStream
import java.io.IOException
import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertSame
import kotlin.test.assertTrue
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import sun.misc.Unsafe

/** The tests. `bundles` has the bundle "bytes": byte-level BPE whose first 256 ids are single bytes. */
class Behaviour(private val bundles: File) {
    private val bundle = bundles.resolve("bytes")
    private val greedy = GenerationOptions(maxNewTokens = 8, sampling = Sampling(), stopIds = emptySet())

    private val slow = SessionOptions(prefillChunk = 1) // many calls for a prompt

    fun run(): Boolean {
        val tests = mapOf(
            "info" to ::info,
            "a flow is cold and ends where its collector ends" to ::flows,
            "cancellation during a prompt" to ::cancelPrompt,
            "cancellation at any time" to ::cancelAnyTime,
            "two flows at a time" to ::twoFlows,
            "use after close" to ::useAfterClose,
            "close during a flow" to ::closeDuringFlow,
            "close during a prompt" to ::closeDuringPrompt,
            "sequences" to ::sequences,
            "errors" to ::errors,
            "files at offsets" to ::filesAtOffsets,
            "failing file opener" to ::failingOpener,
            "Unicode" to ::unicode,
        )
        val failed = tests.filterNot { (name, test) -> passes(name, test) }
        println("${tests.size - failed.size} of ${tests.size} tests of the API passed")
        return failed.isEmpty()
    }

    private fun passes(name: String, test: () -> Unit): Boolean = try {
        test()
        println("ok $name")
        true
    } catch (error: Throwable) {
        println("FAIL $name: ${error.stackTraceToString()}")
        false
    }

    private fun <T> withModel(use: suspend (MolkvModel) -> T): T =
        MolkvModel.open(bundle).use { runBlocking { use(it) } }

    private suspend fun MolkvSession.text(prompt: String = "the owl"): List<Token> = generate(prompt, greedy).toList()

    /** Return a long prompt. It sets `begun` within the call that runs it. */
    private fun longPrompt(begun: CountDownLatch) = listOf(
        Prompt { model, _ ->
            begun.countDown()
            IntArray(longLength(model)) { it % 200 }
        },
    )

    private fun longLength(model: MolkvModel) = model.info.contextLength - 20

    /** Run a long prompt. Returns the time of the prompt in nanoseconds, and leaves the session empty. */
    private fun promptTime(session: MolkvSession): Long {
        val start = System.nanoTime()
        runBlocking { session.generate(longPrompt(CountDownLatch(1)), greedy).first() }
        return (System.nanoTime() - start).also { session.rewind(0) }
    }

    private fun spin(nanoseconds: Long) {
        val start = System.nanoTime()
        while (System.nanoTime() - start < nanoseconds) Thread.onSpinWait()
    }

    private fun info() = withModel { model ->
        val manifest = bundle.resolve("manifest.json").readText()
        assertTrue(""""model_type": *"${model.info.modelType}"""".toRegex() in manifest)
        assertTrue(""""vocab_size": *${model.info.vocabSize}\b""".toRegex() in manifest)
        assertEquals("cpu", model.info.profile)
        assertTrue(model.info.hasTokenizer && model.info.placements.isNotEmpty() && model.info.endIds.isNotEmpty())
        assertEquals(bundle.listFiles()!!.filter { "experts" in it.name }.sumOf(File::length), model.info.storeBytes)
    }

    private fun flows() = withModel { model ->
        model.session().use { session ->
            val flow = session.generate("the owl", greedy)
            assertEquals(0, session.ids().size)
            val tokens = flow.toList()
            assertEquals(List(7) { Finish.NONE } + Finish.LENGTH, tokens.map(Token::finish))
            val whole = model.tokenize("the owl").toList() + tokens.map(Token::id)
            assertEquals(whole, session.ids().toList())
            session.rewind(0)
            assertEquals(tokens.take(3), flow.take(3).toList())
            assertEquals(whole.dropLast(5), session.ids().toList())
            session.rewind(0)
            assertEquals("thrown by the collector", assertFailsWith<IOException> {
                flow.collect { throw IOException("thrown by the collector") }
            }.message)
            assertEquals(whole.dropLast(7), session.ids().toList())
        }
    }

    private fun cancelPrompt() = withModel { model ->
        model.session(slow).use { session ->
            val expected = session.text()
            var interrupted = 0
            repeat(50) {
                session.rewind(0)
                val wait = promptTime(session) / 3
                var tokens = 0
                runBlocking {
                    val begun = CountDownLatch(1)
                    val flow = session.generate(longPrompt(begun), greedy)
                    val job = launch(Dispatchers.Default) { flow.collect { tokens++ } }
                    begun.await()
                    spin(wait)
                    job.cancelAndJoin()
                }
                val kept = session.ids().size
                val generated = kept - longLength(model)
                assertTrue(if (kept == 0) tokens == 0 else generated - tokens in 0..1, "$kept ids, $tokens tokens")
                if (kept == 0) interrupted++
                session.rewind(0)
                assertEquals(expected, session.text())
            }
            assertTrue(interrupted > 5, "only $interrupted of 50 prompts were interrupted")
        }
    }

    private fun cancelAnyTime() = withModel { model ->
        model.session().use { session ->
            val expected = session.text()
            session.rewind(0)
            repeat(300) { round ->
                runBlocking {
                    val job = launch(Dispatchers.Default) { session.text() }
                    spin(round * 10_000L)
                    job.cancelAndJoin()
                    session.rewind(0)
                    assertEquals(expected, session.text())
                    session.rewind(0)
                }
            }
        }
    }

    private fun twoFlows() = withModel { model ->
        val prompts = listOf("the owl", "naïve")
        val expected = prompts.map { prompt -> model.session().use { it.text(prompt) } }
        repeat(10) {
            val found = runBlocking(Dispatchers.Default) {
                prompts.map { async { model.session().use { session -> session.text(it) } } }.awaitAll()
            }
            assertEquals(expected, found)
        }
    }

    private fun useAfterClose() {
        val model = MolkvModel.open(bundle)
        val session = model.session()
        session.close()
        session.close()
        assertFailsWith<MolkvException.Closed> { session.ids() }
        assertFailsWith<MolkvException.Closed> { runBlocking { session.text() } }
        val other = model.session()
        model.close()
        model.close()
        assertFailsWith<MolkvException.Closed> { other.ids() }
        assertFailsWith<MolkvException.Closed> { model.session() }
        assertFailsWith<MolkvException.Closed> { model.selfTest() }
        other.close()
    }

    private fun closeDuringFlow() {
        for (closeModel in listOf(false, true)) {
            val model = MolkvModel.open(bundle)
            val session = model.session()
            val abandoned = session.generate("the", greedy)
            runBlocking { assertEquals(1, abandoned.take(1).toList().size) }
            session.rewind(0)
            var tokens = 0
            assertFailsWith<MolkvException.Closed> {
                runBlocking {
                    session.generate("the owl", greedy).collect {
                        if (++tokens == 2) if (closeModel) model.close() else session.close()
                    }
                }
            }
            assertEquals(2, tokens)
            model.close()
        }
    }

    private fun closeDuringPrompt() {
        var interrupted = 0
        repeat(20) { round ->
            val model = MolkvModel.open(bundle)
            val session = model.session(slow)
            val wait = promptTime(session) / 3
            val begun = CountDownLatch(1)
            val closer = thread {
                begun.await()
                spin(wait)
                if (round % 2 == 0) session.close() else model.close()
            }
            try {
                runBlocking { session.generate(longPrompt(begun), greedy).toList() }
            } catch (_: MolkvException.Cancelled) {
                interrupted++
            } catch (_: MolkvException.Closed) {
                // The session was closed after the prompt.
            }
            closer.join()
            model.close()
        }
        assertTrue(interrupted > 2, "only $interrupted of 20 prompts were interrupted")
    }

    private fun sequences() = withModel { model ->
        val expected = model.session().use { it.text() }
        model.session(SessionOptions(batchSize = 2)).use { session ->
            val prompts = listOf(Prompt("the owl"), Prompt("the owl"))
            val tokens = session.generate(prompts, greedy).toList()
            for (sequence in 0..1) {
                assertEquals(expected.map(Token::id), tokens.filter { it.sequence == sequence }.map(Token::id))
            }
            session.rewind(3)
            session.rewind(0, sequence = 1)
            assertEquals(1, session.fork())
            assertContentEquals(session.ids(0), session.ids(1))
            inTemporaryFolder { folder ->
                session.save(folder.resolve("🦉"), sequence = 1)
                session.rewind(0)
                session.restore(folder.resolve("🦉"))
            }
            assertContentEquals(model.tokenize("the owl").copyOf(3), session.ids())
        }
    }

    private fun errors() {
        val missing = File("/missing/🦉")
        assertTrue(missing.path in assertFailsWith<MolkvException.Bundle> { MolkvModel.open(missing) }.message!!)
        assertFailsWith<MolkvException.Provider> { MolkvModel.open(bundle, ModelOptions(provider = "abacus")) }
        val unknown = ModelOptions(providerOptions = mapOf("speed" to "1"))
        assertTrue("speed" in assertFailsWith<MolkvException.Request> { MolkvModel.open(bundle, unknown) }.message!!)
        val library = System.setProperty("molkv.onnxruntime", "/missing/libonnxruntime.so")
        assertFailsWith<MolkvException.Provider> { MolkvModel.open(bundle) }
        System.setProperty("molkv.onnxruntime", library)
        withModel { model ->
            assertFailsWith<MolkvException> { model.session(SessionOptions(batchSize = Int.MAX_VALUE)) }
            model.session().use { session ->
                assertFailsWith<MolkvException.Request> { session.ids(1) }
                assertFailsWith<MolkvException.Request> { session.rewind(1) }
                assertFailsWith<MolkvException.Request> { session.restore(missing) }
                for (wrong in listOf(greedy.copy(maxNewTokens = 0), greedy.copy(stop = listOf("\u0000")))) {
                    assertFailsWith<MolkvException.Request> { session.generate("a", wrong).first() }
                }
                assertFailsWith<MolkvException.Request> { session.generate("a\ud83e", greedy).first() }
                assertFailsWith<MolkvException.Request> { session.generate(emptyList(), greedy).first() }
                assertEquals(8, session.text().size)
            }
        }
    }

    private fun filesAtOffsets() = inTemporaryFolder { folder ->
        val joined = folder.resolve("joined")
        val regions = mutableMapOf<String, LongRange>()
        joined.outputStream().use { out ->
            for (file in bundle.listFiles()!!) {
                out.write(ByteArray(if (joined.length() % 2 == 0L) 7 else 8)) // each offset is odd
                regions[file.name] = joined.length()..<joined.length() + file.length()
                out.write(file.readBytes())
            }
            out.write(1)
        }
        assertTrue(regions.values.all { it.first % 2 == 1L })
        val open = File("/proc/self/fd").list()!!.size
        val expected = withModel { model -> model.session().use { it.text() } }
        repeat(3) {
            val files = FileOpener { name ->
                regions[name]?.let { FileRegion(descriptor(joined), it.first, it.last - it.first + 1) }
            }
            MolkvModel.open(files).use { model ->
                model.selfTest()
                assertEquals(expected, model.session().use { runBlocking { it.text() } })
            }
        }
        assertEquals(open, File("/proc/self/fd").list()!!.size)
    }

    private fun failingOpener() {
        val error = IOException("🦉")
        assertSame(error, assertFailsWith<IOException> { MolkvModel.open(FileOpener { throw error }) })
        val names = mutableListOf<String>()
        val empty = FileOpener { null.also { _ -> names += it } }
        val bundleError = assertFailsWith<MolkvException.Bundle> { MolkvModel.open(empty) }
        assertEquals(listOf("manifest.json"), names)
        assertTrue("manifest.json" in bundleError.message!!)
    }

    private fun unicode() = withModel { model ->
        // GPT-2 numbers the bytes: first 0x21 to 0x7e, 0xa1 to 0xac and 0xae to 0xff, then the others from 0 on.
        assertEquals(listOf(172, 253, 99, 231, 188, 162, 222), model.tokenize("🦉\u0000怀", false).take(7))
        val nul = greedy.copy(maxNewTokens = 3, sampling = Sampling(logitBias = mapOf(188 to 1e6)))
        val tokens = model.session().use { it.generate("🦉", nul).toList() }
        assertEquals("\u0000\u0000\u0000", tokens.joinToString("", transform = Token::text))
    }
}

/** The streams whose descriptors the library has taken over: the JVM must never close them. */
private val detached = mutableListOf<FileInputStream>()

/** Open a file, and return its descriptor, which the JVM hides. */
private fun descriptor(file: File): Int {
    val unsafe = Unsafe::class.java.getDeclaredField("theUnsafe").apply { isAccessible = true }[null] as Unsafe
    val stream = FileInputStream(file).also { detached += it }
    return unsafe.getInt(stream.fd, unsafe.objectFieldOffset(FileDescriptor::class.java.getDeclaredField("fd")))
}
