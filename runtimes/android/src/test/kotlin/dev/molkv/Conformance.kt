// The conformance suite (runtimes/conformance/README.md) with the Kotlin API.
package dev.molkv

import java.io.File
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking

private typealias Fields = Map<String, Any?>

/** Thrown by a case that the API cannot express. */
private class Skipped(reason: String) : Exception(reason)

/** Runs the cases of a folder. Models are opened when they are first used. */
class Conformance(private val folder: File) : AutoCloseable {
    private val content = Json.parse(folder.resolve("cases.json").readText()).fields()
    private val models = mutableMapOf<String, MolkvModel>()

    /** Print a line for each case, then the counts. Returns whether no case failed. */
    fun run(): Boolean {
        val counts = mutableMapOf("ok" to 0, "FAIL" to 0, "skip" to 0)
        for (case in content.list("cases").map { it.fields() }) {
            val (word, reason) = result(case)
            println("$word ${case["name"]}" + if (reason.isEmpty()) "" else ": $reason")
            counts[word] = counts.getValue(word) + 1
        }
        println("${counts["ok"]} of ${counts.values.sum()} cases passed; ${counts["skip"]} skipped")
        return counts["FAIL"] == 0
    }

    override fun close() = models.values.forEach(MolkvModel::close)

    private fun result(case: Fields): Pair<String, String> = try {
        val wrong = run(case)
        if (wrong.isEmpty()) "ok" to "" else "FAIL" to wrong
    } catch (skipped: Skipped) {
        "skip" to skipped.message!!
    } catch (error: MolkvException) {
        "FAIL" to error.toString()
    }

    /** Returns what is wrong; an empty text if the case passed. */
    private fun run(case: Fields): String {
        if ("lookup" in case) throw Skipped("there is no prompt lookup")
        if ("logprobs" in case && case["kind"] == "tokens") throw Skipped("tokens have no log-probabilities")
        return when (val kind = case["kind"]) {
            "golden" -> "".also { model(case).selfTest() }
            "tokens" -> compare(stream(model(case), case), case.list("expected"))
            "text" -> text(case)
            "refused" -> expect(case) { refused(case) }
            "calls" -> case.list("calls").joinToString("") {
                compare(stream(model(case), it.fields()), it.fields().list("expected"))
            }
            "session" -> session(case)
            "session-refused" -> sessionRefused(case)
            "damage" -> damage(case)
            "sequences" -> throw Skipped("the API has no logits")
            "chat" -> throw Skipped("there is no template engine")
            else -> "unknown kind $kind"
        }
    }

    private fun model(case: Fields): MolkvModel {
        val name = case["bundle"] as String
        val profile = name.takeIf { it == "coreml" || it == "nnapi" }
        val options = ModelOptions(profile = profile)
        return models.getOrPut(name) { MolkvModel.open(folder.resolve("bundles/$name"), options) }
    }

    private fun text(case: Fields): String {
        val model = model(case)
        val prompt = case["prompt"] as String
        val ids = model.tokenize(prompt).toList()
        if (ids != case.ids("prompt_ids")) return "the ids of the prompt are $ids, expected ${case["prompt_ids"]}"
        val options = options(case).copy(stopIds = null)
        val tokens = model.session().use { runBlocking { it.generate(prompt, options).toList() } }
        val expected = case["expected"].fields()
        val pieces = tokens.map(Token::text).filter(String::isNotEmpty)
        if (expected.int("compared") == expected.ids("ids").size && pieces != expected["pieces"]) {
            return "the pieces are $pieces, expected ${expected["pieces"]}"
        }
        return compare(tokens, listOf(expected))
    }

    private fun refused(case: Fields) {
        val text = case["text"] as String? ?: return stream(model(case), case).let { }
        model(case).session().use { runBlocking { it.generate(text).toList() } }
    }

    private fun session(case: Fields): String = inTemporaryFolder { place ->
        val own = place.resolve("own.safetensors")
        listOf(folder.resolve("sessions/${case["session"]}"), own).firstNotNullOfOrNull { file ->
            model(case).session().use { session ->
                session.restore(file)
                val ids = session.ids().toList()
                if (ids != case.ids("ids")) return@firstNotNullOfOrNull "$file has the ids $ids"
                val then = listOf(Prompt(case.ids("then").toIntArray()))
                val tokens = runBlocking { session.generate(then, options(case)).toList() }
                session.rewind(ids.size)
                session.save(own)
                compare(tokens, listOf(case["expected"])).ifEmpty { null }?.let { "${file.name}: $it" }
            }
        }.orEmpty()
    }

    private fun sessionRefused(case: Fields): String = inTemporaryFolder { place ->
        val copy = folder.resolve("sessions/${case["session"]}").copyTo(place.resolve("copy"))
        case.list("patches").forEach { patch(copy, it.fields()) }
        expect(case) { model(case).session().use { it.restore(copy) } }
    }

    private fun damage(case: Fields): String = inTemporaryFolder { place ->
        folder.resolve("bundles/${case["bundle"]}").copyRecursively(place, overwrite = true)
        case.list("patches").map { it.fields() }.forEach { patch(place.resolve(it["file"] as String), it) }
        expect(case) {
            MolkvModel.open(place).use { stream(it, case + ("max_new_tokens" to 3.0), GenerationOptions(3)) }
        }
    }

    private fun patch(file: File, patch: Fields) {
        if ("remove" in patch) {
            file.delete()
        } else if ("from" in patch) {
            folder.resolve("bundles/${patch["from"]}/${file.name}").copyTo(file, overwrite = true)
        } else {
            val old = file.readBytes()
            val offset = patch.int("offset")
            val new = (patch["insert"] as String).chunked(2).map { it.toInt(16).toByte() }.toByteArray()
            val rest = old.copyOfRange(offset + patch.int("delete"), old.size)
            file.writeBytes(old.copyOfRange(0, offset) + new + rest)
        }
    }

    private fun stream(model: MolkvModel, case: Fields, options: GenerationOptions = options(case)): List<Token> {
        val prompts = case.list("prompts").map { ids -> Prompt((ids as List<*>).toIds().toIntArray()) }
        return model.session(SessionOptions(batchSize = prompts.size)).use {
            runBlocking { it.generate(prompts, options).toList() }
        }
    }
}

private fun options(case: Fields) = GenerationOptions(
    maxNewTokens = case.int("max_new_tokens"),
    sampling = case["sampling"]?.fields()?.let(::sampling),
    stopIds = if ("stop_ids" in case) case.ids("stop_ids").toSet() else emptySet(),
    stop = case["stop"]?.let { strings -> (strings as List<*>).map { it as String } }.orEmpty(),
)

private fun sampling(fields: Fields): Sampling {
    fun number(name: String, default: Double) = fields[name] as Double? ?: default
    val seed = (fields["seed"] as String).toULongOrNull() ?: throw Skipped("a seed is a ULong")
    return Sampling(
        number("temperature", 0.0), number("top_k", 0.0).toInt(), number("top_p", 1.0), number("min_p", 0.0),
        number("repetition_penalty", 1.0), number("presence_penalty", 0.0), number("frequency_penalty", 0.0), seed,
        fields["logit_bias"]?.fields().orEmpty().map { (id, bias) -> id.toInt() to bias as Double }.toMap(),
    )
}

private fun compare(tokens: List<Token>, expected: List<Any?>): String = expected.mapIndexedNotNull { index, each ->
    val fields = each.fields()
    val ids = fields.ids("ids")
    val compared = fields.int("compared")
    val own = tokens.filter { it.sequence == index }
    val found = own.map(Token::id)
    val finish = own.last().finish.name.lowercase()
    when {
        found.take(compared) != ids.take(compared) -> "sequence $index: found $found, expected $ids"
        compared < ids.size -> null
        found.size != ids.size || finish != fields["finish"] -> "sequence $index: found ${found.size} tokens, $finish"
        else -> null
    }
}.joinToString("; ")

private fun expect(case: Fields, call: () -> Unit): String = try {
    call()
    "found no error, expected an error of kind ${case["error"]}"
} catch (error: MolkvException) {
    val found = error::class.java.simpleName.lowercase()
    if (found == case["error"]) "" else "found an error of kind $found, expected ${case["error"]}: ${error.message}"
}

fun <T> inTemporaryFolder(use: (File) -> T): T {
    val folder = kotlin.io.path.createTempDirectory("molkv").toFile()
    return try {
        use(folder)
    } finally {
        folder.deleteRecursively()
    }
}

@Suppress("UNCHECKED_CAST")
private fun Any?.fields(): Fields = this as Fields
private fun Fields.list(name: String): List<Any?> = this[name] as List<Any?>
private fun Fields.int(name: String): Int = (this[name] as Double).toInt()
private fun Fields.ids(name: String): List<Int> = list(name).toIds()
private fun List<*>.toIds(): List<Int> = map { (it as Double).toInt() }
