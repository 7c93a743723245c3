// The header of a shard (docs/bundle-format.md, "Shard").
#pragma once

#include <cstdint>

#include "file.h"
#include "manifest.h"

namespace molkv {

// Check that the header of a shard agrees with the manifest (check 9). Returns the position of the first record in the
// file. Throws a bundle error.
std::uint64_t check_shard(const File& file, const ShardInfo& shard, const Table& table);

}  // namespace molkv
