// The header of a shard: one tensor of bytes, and the layout of the records as metadata.
#include "shard.h"

#include <limits>

#include "json.h"
#include "record.h"
#include "safetensors.h"

namespace molkv {

namespace {

[[noreturn]] void refuse(const File& file, const std::string& found) {
    fail(Kind::bundle, file.where(), ": its header differs from the manifest: ", found,
         ". The file belongs to another bundle; copy or export the bundle again");
}

void check_layout(const File& file, const std::string& layout, const ShardInfo& shard, const Table& table) {
    const Json json(layout, file.where() + " (layout)", Kind::bundle);
    const JsonValue root = json.root();
    root.expect_fields({"table", "first_row", "count", "stride", "fields"});
    const auto number = [&](const char* name, std::int64_t expected) {
        const std::int64_t found = root[name].integer(0, std::numeric_limits<std::int64_t>::max());
        if (found != expected) refuse(file, text(name, ": found ", found, ", expected ", expected));
    };
    if (root["table"].string() != table.id) {
        refuse(file, text("table: found ", root["table"].string().substr(0, 40), ", expected ", table.id));
    }
    number("first_row", shard.first_row);
    number("count", shard.count);
    number("stride", table.stride);
    if (parse_record_fields(root["fields"]) != table.fields) {
        refuse(file, "fields: found another layout of the records, expected that of the manifest");
    }
}

}  // namespace

std::uint64_t check_shard(const File& file, const ShardInfo& shard, const Table& table) {
    const SafetensorsHeader header = read_safetensors(file, Kind::bundle);
    const auto records = header.tensors.find("records");
    if (records == header.tensors.end() || header.tensors.size() != 1) {
        refuse(file, text("found ", header.tensors.size(), " tensors, expected one with the name records"));
    }
    const StoredTensor& tensor = records->second;
    if (tensor.dtype != "U8" || tensor.shape != std::vector<std::int64_t>{shard.count, table.stride}) {
        refuse(file, text("records: found ", tensor.dtype, " with ", tensor.shape.size(), " dimensions and ",
                          tensor.size, " bytes, expected U8 [", shard.count, ", ", table.stride, "]"));
    }
    if (tensor.offset != static_cast<std::uint64_t>(shard.data_offset)) {
        refuse(file, text("records: found the first one at byte ", tensor.offset, ", expected ", shard.data_offset));
    }
    const auto format = header.metadata.find("format");
    const auto layout = header.metadata.find("layout");
    if (format == header.metadata.end() || format->second != "molkv-table" || layout == header.metadata.end()) {
        refuse(file, "found other metadata, expected format \"molkv-table\" and a layout");
    }
    check_layout(file, layout->second, shard, table);
    return tensor.offset;
}

}  // namespace molkv
