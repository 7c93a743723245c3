// The options and results of models, sessions and generations.
package dev.molkv

/**
 * How a model is opened.
 *
 * @property provider "cpu", "xnnpack", "nnapi" or "qnn", as far as the app's ONNX Runtime has it.
 * @property profile "cpu" or "nnapi"; by default the best one for the provider.
 * @property providerOptions Options that override the driver's settings for the provider (docs/mobile.md).
 * @property requireProvider Fail if another provider runs some of the nodes.
 * @property skipProviderCheck Do not compare a provider other than "cpu" with a golden text.
 * @property threads Threads of one operator; 0: one for each physical core.
 */
data class ModelOptions(
    val provider: String = "cpu",
    val profile: String? = null,
    val providerOptions: Map<String, String> = emptyMap(),
    val requireProvider: Boolean = false,
    val skipProviderCheck: Boolean = false,
    val threads: Int = 0,
)

/** A file, or a part of a file: [length] bytes from [offset] on. The library takes over the descriptor [fd]. */
class FileRegion(val fd: Int, val offset: Long, val length: Long)

/** Opens the files of a bundle. */
fun interface FileOpener {
    /** Open the file with a plain name, or return null if there is none. Called only by [MolkvModel.open]. */
    fun open(name: String): FileRegion?
}

/**
 * Facts about a model.
 *
 * @property modelType "molkv", "mole" or "gemma4_text".
 * @property placements Where nodes run, such as "99 nodes on CPUExecutionProvider".
 * @property contextLength The longest text, in tokens.
 * @property expertWindow In tokens; 0 if the model has no window.
 * @property hasTokenizer Whether prompts can be texts.
 * @property denseBytes Bytes of the graphs and their weights.
 * @property storeBytes Bytes of the expert store.
 * @property recordBytes Bytes that are read for one token.
 * @property endIds The token ids that end a text.
 */
data class ModelInfo(
    val modelType: String, val profile: String, val denseDtype: String, val kvDtype: String, val expertsDtype: String,
    val placements: String, val vocabSize: Int, val contextLength: Int, val expertWindow: Int,
    val hasTokenizer: Boolean, val denseBytes: Long, val storeBytes: Long, val recordBytes: Long,
    val endIds: List<Int>,
)

/**
 * The size of a session.
 *
 * @property batchSize Sequences that run together.
 * @property maxLength The longest sequence, in tokens; 0: the context of the model.
 * @property prefillChunk Tokens of a prompt in one call, which limits memory; 0: the default, 128.
 */
data class SessionOptions(val batchSize: Int = 1, val maxLength: Int = 0, val prefillChunk: Int = 0)

/** How the next token is chosen (docs/bundle-format.md, "Sampling"). The defaults choose the likeliest token. */
data class Sampling(
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val minP: Double = 0.0,
    val repetitionPenalty: Double = 1.0,
    val presencePenalty: Double = 0.0,
    val frequencyPenalty: Double = 0.0,
    val seed: ULong = 0u,
    val logitBias: Map<Int, Double> = emptyMap(),
)

/** A prompt for one sequence: a text, or token ids. A prompt without ids continues a sequence that is not empty. */
class Prompt internal constructor(internal val encode: (MolkvModel, addSpecialTokens: Boolean) -> IntArray) {
    constructor(text: String) : this({ model, addSpecialTokens -> model.tokenize(text, addSpecialTokens) })
    constructor(ids: IntArray) : this({ _, _ -> ids })
}

/**
 * How texts are continued.
 *
 * @property sampling By default that of the bundle, [MolkvModel.defaultSampling].
 * @property stopIds Token ids that end a text; by default the end ids of the bundle.
 * @property stop At most 16 stop strings of 1 to 1,000 characters. A text ends before them.
 */
data class GenerationOptions(
    val maxNewTokens: Int = 128,
    val sampling: Sampling? = null,
    val stopIds: Set<Int>? = null,
    val stop: List<String> = emptyList(),
)

/** Why a text ends. */
enum class Finish {
    /** The text goes on. */
    NONE,

    /** An end id or a stop string. */
    STOP,

    /** [GenerationOptions.maxNewTokens], or the context is full. */
    LENGTH,
}

/**
 * One generated token.
 *
 * @property sequence Index of the prompt that the token continues.
 * @property text The text that the token completes, often empty. Always empty without a tokenizer.
 */
data class Token(val sequence: Int, val id: Int, val text: String, val finish: Finish)
