// The post-processor of a tokenizer: the special tokens before and after a text.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "json.h"

namespace molkv {

// The special tokens of TemplateProcessing. ByteLevel changes no ids.
class PostProcessor {
 public:
    // Read the field `post_processor`: null, missing, one part, or a Sequence. Throws if it has another type.
    explicit PostProcessor(const std::optional<JsonValue>& field);
    [[nodiscard]] const std::vector<std::int32_t>& before() const { return before_; }
    [[nodiscard]] const std::vector<std::int32_t>& after() const { return after_; }

 private:
    void read_template(const JsonValue& part);
    std::vector<std::int32_t> before_;
    std::vector<std::int32_t> after_;
};

}  // namespace molkv
