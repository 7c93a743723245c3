// The pre-tokenizer of a tokenizer: the split of a text into words, which BPE then encodes one by one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "word_pattern.h"

namespace molkv {

// When Metaspace adds its character at the start of a text ("prepend_scheme").
enum class PrependScheme { always, first, never };

// The fields that the pre-tokenizer and the decoder of type Metaspace share.
struct Metaspace {
    explicit Metaspace(const JsonValue& part);
    std::string replacement;
    PrependScheme scheme;
    bool split;
};

// A list of the steps ByteLevel, Metaspace and Split.
class PreTokenizer {
 public:
    // Read the field `pre_tokenizer`: null, missing, one step, or a Sequence. Throws if a step is not supported.
    explicit PreTokenizer(const std::optional<JsonValue>& field);

    // Return the words of a text. `is_first` tells whether the text begins where the text of the caller begins.
    [[nodiscard]] std::vector<std::string> split(std::string text, bool is_first) const;

 private:
    struct Step {
        std::optional<Metaspace> metaspace;    // with it the other fields have no meaning
        std::optional<WordPattern> pattern;    // split into its matches
        std::optional<std::string> separator;  // split after each
        bool is_byte_level = false;            // replace bytes by characters
        bool add_prefix_space = false;
    };
    void read(const JsonValue& part);
    static void read_split(const JsonValue& part, Step& step);
    static void apply(const Step& step, std::string word, bool is_first, std::vector<std::string>& words);

    std::vector<Step> steps_;
};

}  // namespace molkv
