// What the functions of the C API share: errors become status codes, and structs may be older than the library. So a
// new field of a struct comes last. If the struct ends with padding, the field must not lie there: an older caller
// counts the padding as its own, and may leave any bytes in it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <string_view>

#include "error.h"
#include "molkv.h"

namespace molkv {

// Keep the description of a failure for molkv_last_error, as one line.
void keep_failure(std::string_view description) noexcept;

constexpr molkv_status status_of(Kind kind) {
    switch (kind) {
        case Kind::bundle:
            return MOLKV_ERROR_BUNDLE;
        case Kind::request:
            return MOLKV_ERROR_REQUEST;
        case Kind::provider:
            return MOLKV_ERROR_PROVIDER;
        case Kind::memory:
            return MOLKV_ERROR_MEMORY;
        case Kind::cancelled:
            return MOLKV_CANCELLED;
    }
    return MOLKV_ERROR_INTERNAL;
}

// Call a function that returns a status, and return this status, or that of its exception.
template <typename Call>
molkv_status guarded(const Call& call) noexcept {
    try {
        return call();
    } catch (const Error& error) {
        keep_failure(error.what());
        return status_of(error.kind());
    } catch (const std::bad_alloc&) {
        keep_failure("there is not enough memory for this request");
        return MOLKV_ERROR_MEMORY;
    } catch (const std::exception& error) {
        keep_failure(error.what());
    } catch (...) {
        keep_failure("an unknown exception");
    }
    return MOLKV_ERROR_INTERNAL;
}

// Throw a request error if an argument is NULL.
template <typename Pointer>
Pointer given(Pointer argument, const char* name) {
    if (argument == nullptr) fail(Kind::request, name, ": found NULL");
    return argument;
}

// Throw a request error if there are items, but their list is NULL.
template <typename Pointer>
Pointer given_list(Pointer list, std::size_t count, const char* name) {
    if (count > 0) given(list, name);
    return list;
}

template <typename Struct>
std::size_t common_size(const Struct* argument, const char* name) {
    const std::size_t size = given(argument, name)->size;
    if (size < sizeof(size)) fail(Kind::request, name, ": size: found ", size, ", expected the size of the struct");
    return std::min(size, sizeof(Struct));
}

// Return a struct of the caller. Fields that an older caller does not have are 0.
template <typename Struct>
Struct read_struct(const Struct* argument, const char* name) {
    Struct result = {};
    std::memcpy(&result, argument, common_size(argument, name));
    return result;
}

// Fill a struct of the caller, except for fields that an older caller does not have.
template <typename Struct>
void write_struct(Struct* argument, Struct result, const char* name) {
    const std::size_t size = common_size(argument, name);
    result.size = argument->size;
    std::memcpy(argument, &result, size);
}

}  // namespace molkv
