// The field `model` of a manifest: the fields of all families. Each family reads its own.
#include "model_config.h"

#include <limits>

#include "family.h"

namespace molkv {

namespace {

constexpr std::int64_t largest_size = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t most_layers = 65'536;
constexpr std::int64_t most_positions = std::int64_t{1} << 24U;

}  // namespace

std::int64_t parse_size(const JsonValue& value, std::int64_t least) {
    return value.integer(least, largest_size);
}

std::int64_t parse_even_size(const JsonValue& value) {
    const std::int64_t size = parse_size(value, 1);
    if (size % 2 != 0) value.refuse(text(size), "an even number");
    return size;
}

double parse_positive(const JsonValue& value) {
    const double number = value.number();
    if (number <= 0) value.refuse(text(number), "a number above 0");
    return number;
}

std::int64_t parse_key_value_heads(const JsonValue& model, const ModelConfig& config) {
    const std::int64_t heads = parse_size(model["num_key_value_heads"], 1);
    if (config.num_attention_heads % heads != 0) {
        model["num_attention_heads"].refuse(text(config.num_attention_heads),
                                            text("a multiple of num_key_value_heads, ", heads));
    }
    return heads;
}

ModelConfig parse_model(const JsonValue& model) {
    ModelConfig config;
    config.model_type = model["model_type"].string();
    const Family* family = find_family(config.model_type);
    if (family == nullptr) model["model_type"].refuse(config.model_type.substr(0, 40), family_names());
    config.vocab_size = parse_size(model["vocab_size"], 1);
    config.hidden_size = parse_size(model["hidden_size"], 1);
    static_cast<void>(parse_size(model["intermediate_size"], 1));
    config.num_hidden_layers = model["num_hidden_layers"].integer(1, most_layers);
    config.num_attention_heads = parse_size(model["num_attention_heads"], 1);
    config.max_position_embeddings = model["max_position_embeddings"].integer(1, most_positions);
    static_cast<void>(parse_positive(model["rms_norm_eps"]));
    static_cast<void>(model["tie_word_embeddings"].boolean());
    family->parse(model, config);
    return config;
}

}  // namespace molkv
