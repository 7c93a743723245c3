// A reader of protobuf: tags, varints and lengths.
#include "protobuf.h"

namespace molkv {

bool ProtobufReader::next(ProtobufField& field) {
    if (rest_.empty()) return false;
    const std::uint64_t tag = varint();
    field.number = tag >> 3U;
    field.integer = 0;
    field.bytes = {};
    std::uint64_t size = 0;
    switch (tag & 7U) {
        case 0:
            field.wire = Wire::varint;
            field.integer = static_cast<std::int64_t>(varint());
            return true;
        case 1:
            field.wire = Wire::fixed64;
            size = 8;
            break;
        case 2:
            field.wire = Wire::bytes;
            size = varint();
            break;
        case 5:
            field.wire = Wire::fixed32;
            size = 4;
            break;
        default:
            refuse("an unknown wire type");
    }
    if (size > rest_.size()) refuse("a field that is longer than its message");
    field.bytes = rest_.substr(0, static_cast<std::size_t>(size));
    rest_.remove_prefix(static_cast<std::size_t>(size));
    return true;
}

std::uint64_t ProtobufReader::varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (rest_.empty()) refuse("the end of a message inside a number");
        const auto byte = static_cast<unsigned char>(rest_.front());
        rest_.remove_prefix(1);
        if (shift == 63 && byte > 1) break;
        value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
        if (byte < 0x80) return value;
    }
    refuse("a number of more than 64 bits");
}

void ProtobufReader::refuse(std::string_view found) const {
    fail(Kind::bundle, where_, ": is not an ONNX file: found ", found);
}

}  // namespace molkv
