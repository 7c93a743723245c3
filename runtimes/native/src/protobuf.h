// A reader of protobuf, the format of ONNX files: it gives the fields of a message one after the other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "error.h"

namespace molkv {

enum class Wire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

// A field of a message, as it is in the file.
struct ProtobufField {
    std::uint64_t number = 0;
    Wire wire = Wire::varint;
    std::int64_t integer = 0;  // of a varint, as int64
    std::string_view bytes;    // of the other wire types; a view of the message
};

// Reads one message. Never reads outside of it.
class ProtobufReader {
 public:
    // message: the bytes, which must outlive the reader. where: names the file in messages of errors.
    ProtobufReader(std::string_view message, const std::string& where) : rest_(message), where_(where) {}

    // Read the next field. Returns false at the end of the message. Throws a bundle error if the bytes are no message.
    bool next(ProtobufField& field);

 private:
    std::uint64_t varint();
    [[noreturn]] void refuse(std::string_view found) const;

    std::string_view rest_;
    const std::string& where_;
};

}  // namespace molkv
