/* The example of a package: checks a bundle, and continues a text.
 * Usage: example BUNDLE [PROMPT] */
#include <molkv.h>
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <string.h>

/* Print the last error, and return the exit code of a failure. */
static int failure(void) {
    fprintf(stderr, "error: %s\n", molkv_last_error());
    return 1;
}

/* Print the report of the self-test and its verdict. */
static int check(molkv_model* model) {
    const char* report = NULL;
    const molkv_status status = molkv_selftest(model, &report);
    if (report != NULL) {
        printf("%s\n", report);
    }
    if (status != MOLKV_OK) {
        return failure();
    }
    printf("self-test: passed\n");
    return 0;
}

/* Print each token as soon as its text is complete. */
static int print_tokens(molkv_generation* generation) {
    molkv_token token = {.size = sizeof token};
    molkv_status status = MOLKV_OK;
    while ((status = molkv_generation_next(generation, &token)) == MOLKV_OK) {
        if (token.text != NULL) {
            fwrite(token.text, 1, token.text_length, stdout);
            fflush(stdout);
        }
    }
    printf("\n");
    return status == MOLKV_END ? 0 : failure();
}

static int continue_text(molkv_model* model, const char* text) {
    const molkv_prompt prompt = {.text = text, .text_length = strlen(text)};
    const molkv_generation_options options = {.size = sizeof options, .max_new_tokens = 64};
    molkv_session* session = NULL;
    molkv_generation* generation = NULL;
    int code = 0;
    if (molkv_session_create(model, NULL, &session) != MOLKV_OK ||
        molkv_generate(session, &prompt, 1, &options, &generation) != MOLKV_OK) {
        code = failure();
    } else {
        printf("%s", text);
        code = print_tokens(generation);
    }
    molkv_generation_free(generation);
    molkv_session_free(session);
    return code;
}

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: %s BUNDLE [PROMPT]\n", argv[0]);
        return 2;
    }
    const molkv_model_options options = {
        .size = sizeof options,
        .onnxruntime = OrtGetApiBase(),
        .path = argv[1],
    };
    molkv_model* model = NULL;
    if (molkv_model_open(&options, &model) != MOLKV_OK) {
        return failure();
    }
    int code = check(model);
    if (code == 0) {
        code = continue_text(model, argc == 3 ? argv[2] : "def ");
    }
    molkv_model_close(model);
    return code;
}
