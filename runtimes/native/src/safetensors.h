// The header of a safetensors file: 8 bytes with its length, then JSON. The data is read by position.
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

// Dimensions of a tensor, in safetensors files and in graphs.
constexpr std::size_t most_dimensions = 8;

struct SafetensorsHeader {
    std::map<std::string, std::string> metadata;
    std::map<std::string, StoredTensor> tensors;
    std::uint64_t data_offset = 0;
};

// Parse a header. `file_size` is the size of the whole file: 8 bytes, the header and the data. `where` names the file.
// Makes the checks of read_safetensors.
SafetensorsHeader parse_safetensors_header(std::string header, std::uint64_t file_size, const std::string& where,
                                           Kind kind);

// Read the header of a file. Checks that it is strict JSON, that each tensor has exactly the bytes of its dtype and
// shape, and that the tensors fill the rest of the file without gaps and overlaps. Throws an error of `kind`.
SafetensorsHeader read_safetensors(const File& file, Kind kind);

}  // namespace molkv
