// The header of a safetensors file. The data is read by position.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "file.h"

namespace molkv {

struct StoredTensor {
    std::string dtype;  // as in the file, such as "F32"
    std::vector<std::int64_t> shape;
    std::uint64_t offset = 0;  // in the file
    std::uint64_t size = 0;    // bytes
};

struct SafetensorsHeader {
    std::map<std::string, std::string> metadata;
    std::map<std::string, StoredTensor> tensors;
    std::uint64_t data_offset = 0;
};

// Read the header of a file. Checks that it is strict JSON, that each tensor has exactly the bytes of its dtype and
// shape, that the tensors lie inside the file, and that they do not overlap. Throws an error of `kind`.
SafetensorsHeader read_safetensors(const File& file, Kind kind);

}  // namespace molkv
