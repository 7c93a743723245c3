// The command-line tool: results, messages and exit codes.
// Usage: MOLKV_TOOL=PATH MOLKV_ONNXRUNTIME=PATH test_tool CONFORMANCE-FOLDER
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>

#include "check.h"
#include "json.h"

namespace test = molkv::test;

namespace {

struct Result {
    int code = -1;
    std::string output;  // standard output and standard error
};

// Run a command of the shell, in which $MOLKV is the tool.
Result shell(const std::string& command) {
    Result result;
    std::FILE* const pipe = popen(("exec 2>&1; MOLKV=\"$MOLKV_TOOL\"; " + command).c_str(), "r");
    if (pipe == nullptr) return result;
    std::array<char, 4096> buffer{};
    for (std::size_t size = 1; size > 0;) {
        size = std::fread(buffer.data(), 1, buffer.size(), pipe);
        result.output.append(buffer.data(), size);
    }
    const int status = pclose(pipe);
    if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
    return result;
}

void expect(const std::string& arguments, int code, std::string_view part) {
    const auto found = shell("$MOLKV " + arguments);
    test::equal(found.code, code, arguments + ": exit code");
    test::that(found.output.find(part) != std::string::npos,
               molkv::text(arguments, ": found ", found.output, ", expected ", part));
    if (code == 0) return;
    const bool one_line = found.output.find('\n') == found.output.size() - 1;
    test::that(one_line && found.output.substr(0, 7) == "error: ", arguments + ": an error is one line");
}

void check_run(const std::string& bundles) {
    const std::string bytes = bundles + "/bytes";
    // Expected texts are those of the cases bytes/text-0 and bytes/text-stop-string in cases.json.
    const std::string sampling = " --temperature 5 --min-p 0.001 --max-new-tokens 16 ";
    expect("run " + bytes + " --prompt 'the quick brown' --seed 6" + sampling, 0,
           "the quick brown\uFFFD\uFFFDj\uFFFD\uFFFD\n");
    const auto json =
        shell("$MOLKV run " + bytes + " --prompt 'the quick brown' --json --seed=2 --stop '(1X' --stop '1X?'" +
              sampling + "| tail -n 1");
    const molkv::Json parsed(json.output, "output", molkv::Kind::request);
    test::equal(parsed.root()["text"].string(), "quick\uFFFD\uFFFD\uFFFD\t\uFFFD\uFFFDls\uFFFDR\uFFFD", "the text");
    test::equal(parsed.root()["finish"].string(), "stop", "the end");
    test::equal(parsed.root()["tokens"].size(), 14U, "the tokens");
    expect("run " + bundles + "/molkv --prompt-ids 17,56,35,36,28 --max-new-tokens 4 --temperature 0", 0,
           "31 28 38 44\n");
    expect("run " + bytes + " --prompt a --prompt b --max-new-tokens 1", 0, "--- prompt 2\nb");
    expect("run " + bytes, 2, "--prompt");
    expect("run " + bytes + " --prompt a --top-k -3", 2, "--top-k: found '-3'");
    expect("run " + bytes + " --prompt a --temperature -3", 2, "temperature: found -3");
    expect("run " + bytes + " --prompt a --nosuch", 2, "--nosuch");
    expect("run " + bytes + " --prompt", 2, "--prompt: found 'nothing'");
    expect("run " + bytes + " --prompt ''", 1, "no tokens");
    expect("run " + bundles + "/molkv --prompt a", 1, "tokenizer");
    expect("run /no/such --prompt a", 1, "/no/such");
    expect("run " + bytes + " --prompt a --onnxruntime /no/such.so", 1, "--onnxruntime");
    expect("run " + bytes + " --prompt a --onnxruntime ''", 2, "--onnxruntime: found ''");
    expect("run " + bytes + " --prompt a --stop ''", 2, "stop: found a string of 0 characters");
    expect("run " + bytes + " --prompt a --provider-option x=y", 2, "provider_options: found x");
    expect("run " + bytes + " --prompt a --profile x", 2, "--profile: found 'x'");
    expect("run " + bytes + " --prompt a --provider x", 2, "--provider: found 'x'");
    expect("run " + bytes + " --prompt-file /", 1, "/: cannot be read (Is a directory)");
    expect("run " + bytes + " --prompt-file /dev/zero", 1, "more than 64 MiB");
}

void check_others(const std::string& bundles) {
    expect("--version", 0, "molkv ");
    expect("run --help", 0, "Examples:");
    expect("bench -h", 0, "Examples:");
    expect("-h", 0, "Commands:");
    expect("nosuch", 2, "'nosuch'");
    expect("selftest " + bundles + "/mole", 0, "ok    greedy text");
    expect("inspect " + bundles + "/mole --json", 0, "\"vocab_size\": 61");
    expect("tokenize " + bundles + "/bytes --text 'the quick brown'", 0, "83,71,68,220,265,220,65,81,78,86,77\n");
    expect("tokenize " + bundles + "/bytes --ids 83,71,68,220,265", 0, "the quick\n");
    expect("bench " + bundles + "/molkv --prompt-tokens 5 --steps 5 --runs 2", 0, "\"decode_tokens_per_second\": ");
}

void check_signals(const std::string& bundles) {
    const std::string busy = "$MOLKV bench " + bundles + "/molkv --prompt-tokens 20 --steps 130 --runs 1000 & ";
    for (const std::string name : {"INT", "TERM", "HUP"}) {
        std::string command = busy;
        command.append("sleep 0.5; kill -").append(name).append(" $!; wait $!");
        test::equal(shell(command).code, 130, "the exit code after " + name);
    }
    const auto closed = shell("{ $MOLKV run " + bundles + "/bytes --prompt a; echo code $? >&2; } | true");
    test::equal(closed.output, "code 1\n", "a reader that ends early");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2 || std::getenv("MOLKV_TOOL") == nullptr) {
        std::cerr << "usage: MOLKV_TOOL=PATH MOLKV_ONNXRUNTIME=PATH test_tool CONFORMANCE-FOLDER\n";
        return 2;
    }
    const std::string bundles = std::string(arguments[1]) + "/bundles";
    check_run(bundles);
    check_others(bundles);
    check_signals(bundles);
    return test::finish();
}
