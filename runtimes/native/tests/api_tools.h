// What the tests of the C API share: expected failures, and greedy generation.
#pragma once

#include "check.h"
#include "handles.h"

namespace molkv::test {

using Ids = std::vector<std::int32_t>;

inline const Ids prompt = {3, 1, 4, 1, 5, 9, 2, 6};

inline void expect(molkv_status found, molkv_status expected, std::string_view part, std::string_view what) {
    const std::string message = molkv_last_error();
    molkv::test::equal(found, expected, what);
    that(message.find(part) != std::string::npos, text(what, ": the message lacks ", part, ": ", message));
}

inline void refuse(molkv_status found, std::string_view part, std::string_view what) {
    expect(found, MOLKV_ERROR_REQUEST, part, what);
}

inline molkv_generation_options greedy(std::int32_t max_new_tokens) {
    static const std::int32_t no_id = -1;
    molkv_generation_options options = {};
    options.size = sizeof(options);
    options.max_new_tokens = max_new_tokens;
    options.stop_ids = &no_id;
    return options;
}

inline Ids continued(molkv_session* session, const Ids& ids, std::int32_t max_new_tokens) {
    const auto generation = generate(session, {prompt_of(ids)}, greedy(max_new_tokens));
    Ids found;
    molkv_token token;
    while (next_token(generation.get(), token)) found.push_back(token.id);
    return found;
}

}  // namespace molkv::test
