/* molkv: runs lookup-expert language models (docs/bundle-format.md) with ONNX Runtime.
 *
 * Use: open a model (molkv_model_open), create a session (molkv_session_create), start a generation (molkv_generate)
 * and read its tokens (molkv_generation_next). docs/native.md has an example.
 *
 * Errors. A function that can fail returns a molkv_status. After every status but MOLKV_OK and MOLKV_END,
 * molkv_last_error() describes the failure. A failed function does not change its output arguments.
 *
 * Structs. The first field of each struct that may grow is `size`. Set it to sizeof the struct; the other fields may be
 * zero, which means the default. A library that is older than the header ignores the fields that it does not know. Use
 * designated initializers, or memset the struct to 0 first.
 *
 * Texts are UTF-8. A text that a caller passes ends with a NUL byte, unless its length is passed, too.
 *
 * Ownership. A caller keeps what it passes; the library copies what it needs after a call. A pointer that a function
 * returns belongs to the object of its first argument, and is valid until the next call with this object, unless the
 * description says otherwise. Free a generation before its session, and a session before its model.
 *
 * Threads. Different threads may use one model at the same time: each with its own session. One session, together with
 * its generation, may be used by one thread at a time. The exception is molkv_session_cancel, which any thread may
 * call at any time. */
#ifndef MOLKV_H
#define MOLKV_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MOLKV_API
#else
#define MOLKV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The result of a function. The first four errors are the kinds of docs/bundle-format.md, "Errors". */
typedef enum molkv_status {
    MOLKV_OK = 0,
    MOLKV_ERROR_BUNDLE = 1,   /* the bundle is damaged, incomplete or not supported */
    MOLKV_ERROR_REQUEST = 2,  /* an argument is impossible; a saved session was refused */
    MOLKV_ERROR_PROVIDER = 3, /* ONNX Runtime or its provider is missing, too old, fails, or computes wrong numbers */
    MOLKV_ERROR_MEMORY = 4,   /* the request needs more memory than there is */
    MOLKV_CANCELLED = 5,      /* molkv_session_cancel was called; the session is as it was before the call */
    MOLKV_ERROR_INTERNAL = 6, /* a bug of this library */
    MOLKV_END = 7             /* not an error: a generation has no more tokens */
} molkv_status;

/* Return the version of the library, such as "0.1.0". Valid forever. */
MOLKV_API const char* molkv_version(void);

/* Return a description of the last failure in this thread: one line, which names the file or argument, what was found
 * and what was expected. Never NULL. Valid until the next call of a function of this library in this thread. */
MOLKV_API const char* molkv_last_error(void);

/* ---- Models ---- */

typedef struct molkv_model molkv_model; /* an open bundle: its graphs, its expert store and its tokenizer */

/* A file, or a part of a file, such as an uncompressed asset in an Android package. */
typedef struct molkv_file {
    int fd;         /* an open descriptor, another one for each file; the library closes it, also after a failure */
    int64_t offset; /* where the content begins, in bytes */
    int64_t length; /* bytes of the content */
} molkv_file;

/* Open a file of a bundle by its name (a plain name without folders), and describe it in `file`.
 * Return 0, or another number if there is no such file. Called only during molkv_model_open, in its thread. */
typedef int (*molkv_open_file)(void* context, const char* name, molkv_file* file);

typedef struct molkv_option {
    const char* name;
    const char* value;
} molkv_option;

struct OrtApiBase; /* from onnxruntime_c_api.h */

typedef struct molkv_model_options {
    size_t size;
    const struct OrtApiBase* onnxruntime; /* the result of OrtGetApiBase(); required */
    const char* path;                     /* the folder of the bundle; or use open_file */
    molkv_open_file open_file;            /* opens the files of the bundle, if path is NULL */
    void* open_file_context;              /* the first argument of open_file */
    const char* profile;                  /* "cpu", "coreml" or "nnapi"; default: the best one for the provider */
    const char* provider; /* "cpu" (default), "xnnpack", "coreml", "nnapi", "openvino", "qnn" or "cuda" */
    const molkv_option* provider_options; /* override the preset of the provider (docs/mobile.md) */
    size_t provider_option_count;
    int32_t require_provider;    /* not 0: fail if another provider runs some of the nodes */
    int32_t skip_provider_check; /* not 0: do not compare a provider other than "cpu" with a golden text */
    int32_t threads;             /* threads of one operator; 0: one for each physical core */
} molkv_model_options;

/* Open a bundle, check it, and load its graphs. Records of the expert store are read when they are needed.
 * Errors: bundle, request, provider, memory. */
MOLKV_API molkv_status molkv_model_open(const molkv_model_options* options, molkv_model** model);

/* Free a model. NULL is allowed. */
MOLKV_API void molkv_model_close(molkv_model* model);

/* Facts about a model. The texts are valid until molkv_model_close. */
typedef struct molkv_model_info {
    size_t size;             /* set by the caller */
    const char* model_type;  /* "molkv", "mole" or "gemma4_text" */
    const char* profile;     /* the profile in use */
    const char* dense_dtype; /* dtype of the dense weights, such as "int4" */
    const char* kv_dtype;    /* dtype of the KV cache */
    const char* experts_dtype;
    const char* placements; /* where nodes run, such as "99 nodes on CPUExecutionProvider" */
    int32_t vocab_size;
    int32_t context_length; /* tokens */
    int32_t expert_window;  /* tokens; 0 if the model has no window */
    int32_t has_tokenizer;  /* 0: prompts must be token ids */
    int64_t dense_bytes;    /* bytes of the graphs and their weights */
    int64_t store_bytes;    /* bytes of the expert store */
    int64_t record_bytes;   /* bytes that are read for one token */
    const int32_t* end_ids; /* token ids that end a text */
    size_t end_id_count;
} molkv_model_info;

/* Fill `info`. Errors: request. */
MOLKV_API molkv_status molkv_model_get_info(const molkv_model* model, molkv_model_info* info);

/* Hash every file of the bundle, and run its golden vectors: prefill, decode, a batch, greedy text. `report` has one
 * line for each check, and is valid until the next self-test or molkv_model_close.
 * Returns MOLKV_OK if all checks passed, MOLKV_ERROR_BUNDLE if a file is damaged, MOLKV_ERROR_PROVIDER if numbers
 * differ; `report` is set in these three cases. Other errors: memory. No other thread may use the model meanwhile. */
MOLKV_API molkv_status molkv_selftest(molkv_model* model, const char** report);

/* ---- Text and token ids ---- */

/* Convert a text to token ids.
 * text, length: UTF-8 and its bytes.
 * add_special_tokens: not 0 to add the tokens that the tokenizer adds to a prompt, such as one at its start.
 * ids, capacity: memory for the ids; may be NULL if capacity is 0.
 * count: the number of ids, also if it is above capacity; ids then has the first ones.
 * Errors: bundle (no tokenizer, or none that this library supports), request (not UTF-8). */
MOLKV_API molkv_status molkv_tokenize(const molkv_model* model, const char* text, size_t length,
                                      int32_t add_special_tokens, int32_t* ids, size_t capacity, size_t* count);

/* Convert token ids to text, without special tokens.
 * text, capacity: memory for the text, in bytes; no NUL is added.
 * length: bytes of the text, also if it is above capacity; text then has the first ones.
 * Errors: bundle, request (an id outside the vocabulary). */
MOLKV_API molkv_status molkv_detokenize(const molkv_model* model, const int32_t* ids, size_t count, char* text,
                                        size_t capacity, size_t* length);

/* ---- Sessions ---- */

typedef struct molkv_session molkv_session; /* texts that grow: token ids, KV cache and experts of each sequence */

typedef struct molkv_session_options {
    size_t size;
    int32_t batch_size;    /* sequences that run together; default 1 */
    int32_t max_length;    /* the longest sequence, in tokens; default: the context of the model */
    int32_t prefill_chunk; /* tokens of a prompt in one call, which limits memory; default 128 */
} molkv_session_options;

/* Create a session of empty sequences, and allocate all its memory. `options` may be NULL.
 * Errors: request, memory. */
MOLKV_API molkv_status molkv_session_create(molkv_model* model, const molkv_session_options* options,
                                            molkv_session** session);

/* Free a session. NULL is allowed. */
MOLKV_API void molkv_session_free(molkv_session* session);

/* Make the running call with this session or its generation return MOLKV_CANCELLED. A prompt stops before its next
 * chunk. If no call runs, or the running call is almost complete, then the next call of molkv_session_prefill,
 * molkv_session_decode, molkv_session_fork or molkv_generation_next returns MOLKV_CANCELLED; but molkv_generation_free
 * forgets a cancellation that no call has returned. Thread-safe and lock-free, so a signal handler may call it. The
 * session must exist until this function returns. */
MOLKV_API void molkv_session_cancel(molkv_session* session);

/* Return the token ids of a sequence: those that were run, and those that a generation chose after them.
 * ids: valid until the next call with the session. Errors: request. */
MOLKV_API molkv_status molkv_session_ids(const molkv_session* session, int32_t sequence, const int32_t** ids,
                                         size_t* count);

/* Append token ids to a sequence and run them.
 * logits: receives a pointer to the logits of the last position, float [vocab_size], valid until the next call with the
 * session; may be NULL. Errors: bundle, request, provider, cancelled. The sequence then stays as it was. */
MOLKV_API molkv_status molkv_session_prefill(molkv_session* session, int32_t sequence, const int32_t* ids, size_t count,
                                             const float** logits);

/* Append one token id to each active sequence and run them together.
 * ids: [batch_size]. active: [batch_size], not 0 for sequences that go on; NULL: all.
 * logits: receives a pointer to float [batch_size, vocab_size], valid until the next call with the session; rows of
 * other sequences have no meaning. Errors: bundle, request, provider, cancelled. */
MOLKV_API molkv_status molkv_session_decode(molkv_session* session, const int32_t* ids, const uint8_t* active,
                                            const float** logits);

/* Shorten a sequence to its first `length` tokens. Length 0 frees the sequence. Errors: bundle, request. */
MOLKV_API molkv_status molkv_session_rewind(molkv_session* session, int32_t sequence, int32_t length);

/* Copy a sequence to the first free (empty) sequence. `copy` receives its index. Errors: bundle, request. */
MOLKV_API molkv_status molkv_session_fork(molkv_session* session, int32_t sequence, int32_t* copy);

/* Save a sequence to a file that every driver can restore (docs/bundle-format.md, "The saved file"). The file appears
 * under its name when it is complete. Errors: request. */
MOLKV_API molkv_status molkv_session_save(molkv_session* session, int32_t sequence, const char* path);

/* Restore a saved file into an empty sequence. Errors: bundle, request (the file is damaged, or of another bundle). */
MOLKV_API molkv_status molkv_session_restore(molkv_session* session, int32_t sequence, const char* path);

/* ---- Sampling ---- */

typedef struct molkv_logit_bias {
    int32_t id;
    double bias; /* -1e6 to 1e6 */
} molkv_logit_bias;

/* The parameters of docs/bundle-format.md, "Sampling", which has their ranges. Fill the struct with
 * molkv_sampling_defaults first: here zero is a value, not a default. */
typedef struct molkv_sampling {
    size_t size;
    double temperature;
    int32_t top_k;
    double top_p;
    double min_p;
    double repetition_penalty;
    double presence_penalty;
    double frequency_penalty;
    uint64_t seed;
    const molkv_logit_bias* logit_bias;
    size_t logit_bias_count;
} molkv_sampling;

/* Fill `sampling` with the defaults of a bundle, or with greedy sampling if `model` is NULL. Errors: request. */
MOLKV_API molkv_status molkv_sampling_defaults(const molkv_model* model, molkv_sampling* sampling);

/* Choose the next token from logits, to the bit as docs/bundle-format.md defines it.
 * logits: float [vocab_size]. prompt, generated: the token ids before it. sequence: index of the prompt in its call.
 * Errors: request, provider (a logit is NaN or infinite). */
MOLKV_API molkv_status molkv_sample(const molkv_sampling* sampling, const float* logits, size_t vocab_size,
                                    const int32_t* prompt, size_t prompt_count, const int32_t* generated,
                                    size_t generated_count, int32_t sequence, int32_t* id);

/* ---- Generation ---- */

typedef struct molkv_generation molkv_generation; /* a running call: one prompt for each sequence, token by token */

/* A prompt: a text, or token ids if `text` is NULL. It is appended to its sequence. A text that starts an empty
 * sequence gets the special tokens of the tokenizer. A prompt without tokens continues a sequence that is not empty. */
typedef struct molkv_prompt {
    const char* text;
    size_t text_length; /* bytes */
    const int32_t* ids;
    size_t id_count;
} molkv_prompt;

typedef struct molkv_generation_options {
    size_t size;
    int32_t max_new_tokens;         /* required, 1 or more (128 if `options` is NULL); 0 is an error, not a default */
    const molkv_sampling* sampling; /* default: the defaults of the bundle */
    const int32_t* stop_ids;        /* ids that end a text; NULL: the end ids of the bundle */
    size_t stop_id_count;
    const char* const* stop; /* at most 16 stop strings of 1 to 1,000 characters; the text ends before them */
    size_t stop_count;
    int32_t with_logprobs; /* not 0: tokens have their log-probability, and those of the likeliest tokens */
    int32_t best_count;    /* number of likeliest tokens */
    int32_t without_text;  /* not 0: tokens have no text, which needs no tokenizer; no effect with stop strings */
} molkv_generation_options;

typedef enum molkv_finish {
    MOLKV_FINISH_NONE = 0,  /* the text goes on */
    MOLKV_FINISH_STOP = 1,  /* an end id or a stop string */
    MOLKV_FINISH_LENGTH = 2 /* max_new_tokens, or the context is full */
} molkv_finish;

typedef struct molkv_logprob {
    int32_t id;
    double logprob;
} molkv_logprob;

/* One generated token. Pointers are valid until the next call with the generation. */
typedef struct molkv_token {
    size_t size;      /* set by the caller */
    int32_t sequence; /* index of the prompt that the token continues */
    int32_t id;
    molkv_finish finish;
    const char* text;   /* the text that this token completes, often empty; NULL if tokens have no text */
    size_t text_length; /* bytes */
    double logprob;     /* 0 unless with_logprobs */
    const molkv_logprob* best;
    size_t best_count;
} molkv_token;

/* Start to continue texts. Prompt i is appended to sequence i; `count` is the batch size of the session. `options` may
 * be NULL. A prompt is run, and becomes a part of its sequence, when molkv_generation_next returns its first token. A
 * session has one generation at a time: a later molkv_generate, and each function that changes a sequence, ends an
 * earlier generation, whose next call then fails. Penalties count the text before this call as the prompt.
 * Errors: bundle, request. */
MOLKV_API molkv_status molkv_generate(molkv_session* session, const molkv_prompt* prompts, size_t count,
                                      const molkv_generation_options* options, molkv_generation** generation);

/* Return the next token. Returns MOLKV_END after the last token of all sequences. After an error, the generation only
 * returns this error; the sequences have the tokens that were returned.
 * Errors: bundle, request, provider, memory, cancelled. */
MOLKV_API molkv_status molkv_generation_next(molkv_generation* generation, molkv_token* token);

/* Free a generation, also before its end. The session keeps the tokens that were returned. A cancellation that no call
 * has returned is forgotten, unless a later generation has started. NULL is allowed. */
MOLKV_API void molkv_generation_free(molkv_generation* generation);

#ifdef __cplusplus
}
#endif

#endif
