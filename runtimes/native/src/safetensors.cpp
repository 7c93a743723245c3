// The header of a safetensors file: parsing, and the checks of shapes and positions.
#include "safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "json.h"

namespace molkv {

namespace {

constexpr std::uint64_t most_header_bytes = 100'000'000;  // the limit of the safetensors library
constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

struct Item {
    std::string_view dtype;
    std::uint64_t bytes;
};

constexpr std::array<Item, 19> items = {{{"F64", 8},
                                         {"I64", 8},
                                         {"U64", 8},
                                         {"C64", 8},
                                         {"F32", 4},
                                         {"I32", 4},
                                         {"U32", 4},
                                         {"F16", 2},
                                         {"BF16", 2},
                                         {"I16", 2},
                                         {"U16", 2},
                                         {"I8", 1},
                                         {"U8", 1},
                                         {"BOOL", 1},
                                         {"F8_E4M3", 1},
                                         {"F8_E5M2", 1},
                                         {"F8_E8M0", 1},
                                         {"F8_E4M3FNUZ", 1},
                                         {"F8_E5M2FNUZ", 1}}};

// Return the bytes of a tensor, or refuse a tensor of more than `limit` bytes.
std::uint64_t tensor_bytes(const JsonValue& entry, const std::vector<std::int64_t>& shape, std::uint64_t limit) {
    const std::string_view dtype = entry["dtype"].string();
    const auto* item = std::find_if(items.begin(), items.end(), [&](const Item& one) { return one.dtype == dtype; });
    if (item == items.end()) entry["dtype"].refuse(dtype.substr(0, 20), "a dtype of safetensors, such as F32");
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
    std::uint64_t bytes = item->bytes;
    for (const std::int64_t dimension : shape) {
        if (static_cast<std::uint64_t>(dimension) > limit / bytes) {
            entry["shape"].refuse("a tensor that is larger than the file", "a shape that fits the data");
        }
        bytes *= static_cast<std::uint64_t>(dimension);
    }
    return bytes;
}

StoredTensor parse_tensor(const JsonValue& entry, std::uint64_t data_offset, std::uint64_t data_size) {
    entry.expect_fields({"dtype", "shape", "data_offsets"});
    StoredTensor tensor;
    tensor.dtype = entry["dtype"].string();
    const std::vector<JsonValue> shape = entry["shape"].list();
    if (shape.size() > most_dimensions) {
        entry["shape"].refuse(text(shape.size(), " dimensions"), text("at most ", most_dimensions));
    }
    for (const JsonValue& dimension : shape) tensor.shape.push_back(dimension.integer(0, most));
    const JsonValue offsets = entry["data_offsets"];
    const std::vector<JsonValue> range = offsets.list();
    if (range.size() != 2) offsets.refuse(text(range.size(), " numbers"), "2");
    const auto begin = static_cast<std::uint64_t>(range[0].integer(0, most));
    const auto end = static_cast<std::uint64_t>(range[1].integer(0, most));
    if (begin > end || end > data_size) {
        offsets.refuse(text("[", begin, ", ", end, "]"),
                       text("a part of the ", data_size, " bytes of data; is the file truncated?"));
    }
    tensor.size = tensor_bytes(entry, tensor.shape, data_size);
    if (end - begin != tensor.size) {
        offsets.refuse(text(end - begin, " bytes"), text(tensor.size, " bytes, which follow from dtype and shape"));
    }
    tensor.offset = data_offset + begin;
    return tensor;
}

// Check that the tensors, in the order of their data, fill the data exactly.
void check_places(const SafetensorsHeader& header, std::uint64_t file_size, const std::string& where, Kind kind) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
    places.reserve(header.tensors.size());
    for (const auto& [name, tensor] : header.tensors) places.emplace_back(tensor.offset, tensor.size);
    std::sort(places.begin(), places.end());
    std::uint64_t next = header.data_offset;
    for (const auto& [offset, size] : places) {
        if (offset != next) {
            fail(kind, where, ": a tensor begins at byte ", offset, ", expected ", next,
                 ", where the tensor before it ends");
        }
        next += size;
    }
    if (next != file_size) {
        fail(kind, where, ": has ", file_size, " bytes, expected ", next,
             " according to its header; is the file truncated?");
    }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string header, std::uint64_t file_size, const std::string& where,
                                           Kind kind) {
    SafetensorsHeader found;
    found.data_offset = 8 + header.size();
    if (found.data_offset > file_size) fail(kind, where, ": has ", file_size, " bytes, fewer than its header");
    const Json json(std::move(header), where + " (header)", kind);
    for (const JsonValue& entry : json.root().fields()) {
        if (entry.key() != "__metadata__") {
            found.tensors.emplace(entry.key(), parse_tensor(entry, found.data_offset, file_size - found.data_offset));
            continue;
        }
        for (const JsonValue& value : entry.fields()) found.metadata.emplace(value.key(), value.string());
    }
    check_places(found, file_size, where, kind);
    return found;
}

SafetensorsHeader read_safetensors(const File& file, Kind kind) {
    std::uint64_t length = 0;
    if (file.size() < sizeof length) {
        fail(kind, file.where(), ": has ", file.size(), " bytes, expected a safetensors file; is the file truncated?");
    }
    file.read(0, std::as_writable_bytes(std::span(&length, 1)), kind);
    if (length > std::min(file.size() - sizeof length, most_header_bytes)) {
        fail(kind, file.where(), ": its first 8 bytes say that its header has ", length,
             " bytes, expected a safetensors file with a header of at most ",
             std::min(file.size() - sizeof length, most_header_bytes), " bytes");
    }
    std::string header(static_cast<std::size_t>(length), '\0');
    file.read(sizeof length, std::as_writable_bytes(std::span(header)), kind);
    return parse_safetensors_header(std::move(header), file.size(), file.where(), kind);
}

}  // namespace molkv
