// Decodes an ONNX file. The field numbers are those of onnx.proto.
#include "onnx_model.h"

#include <array>
#include <bitset>

#include "error.h"
#include "protobuf.h"
#include "utf8.h"

namespace molkv {

namespace {

// Reads the fields of one message, and refuses those that a dense graph may not have.
class Message {
 public:
    Message(const char* name, std::string_view content, const std::string& where)
        : name_(name), where_(where), reader_(content, where) {}

    // Read the next field. Returns its number, or 0 at the end.
    std::uint64_t next() {
        if (!reader_.next(field_)) return 0;
        if (field_.number == 0 || field_.number >= seen_.size()) unknown();
        first_ = !seen_.test(static_cast<std::size_t>(field_.number));
        seen_.set(static_cast<std::size_t>(field_.number));
        return field_.number;
    }

    [[noreturn]] void unknown() const {
        fail(Kind::bundle, where_, ": found field ", field_.number, " of ", name_,
             ", which is not allowed in a dense graph");
    }

    [[noreturn]] void missing(const char* field) const {
        fail(Kind::bundle, where_, ": is not an ONNX file: found ", name_, " without ", field);
    }

    [[nodiscard]] bool has(std::size_t number) const { return seen_.test(number); }

    // The content of the current field, which may be repeated.
    [[nodiscard]] std::string_view item() const {
        expect(Wire::bytes);
        return field_.bytes;
    }
    [[nodiscard]] std::int64_t integer_item() const {
        expect(Wire::varint);
        return field_.integer;
    }
    [[nodiscard]] std::string_view name_item() const {
        if (!is_utf8(item())) refuse("a name that is not UTF-8");
        return field_.bytes;
    }

    // The content of the current field, which may occur only once: readers differ in the value that they use.
    [[nodiscard]] std::string_view bytes() const { return once(), item(); }
    [[nodiscard]] std::int64_t integer() const { return once(), integer_item(); }
    [[nodiscard]] std::string_view name() const { return once(), name_item(); }
    void real() const { once(), expect(Wire::fixed32); }

 private:
    void once() const {
        if (!first_) refuse("it a second time");
    }
    void expect(Wire wire) const {
        if (field_.wire != wire) refuse("a wrong wire type");
    }
    [[noreturn]] void refuse(const char* found) const {
        fail(Kind::bundle, where_, ": is not an ONNX file: field ", field_.number, " of ", name_, ": found ", found);
    }

    const char* name_;
    const std::string& where_;
    ProtobufReader reader_;
    ProtobufField field_;
    std::bitset<32> seen_;
    bool first_ = false;
};

std::pair<std::string_view, std::string_view> decode_entry(std::string_view content, const std::string& where) {
    Message message("StringStringEntryProto", content, where);
    std::pair<std::string_view, std::string_view> entry;
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                entry.first = message.name();
                break;
            case 2:
                entry.second = message.name();
                break;
            default:
                message.unknown();
        }
    }
    return entry;
}

OnnxTensor decode_tensor(std::string_view content, const std::string& where) {
    Message message("TensorProto", content, where);
    OnnxTensor tensor;
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                tensor.shape.push_back(message.integer_item());
                break;
            case 2:
                tensor.data_type = message.integer();
                break;
            case 8:
                tensor.name = message.name();
                break;
            case 9:
                tensor.raw_data = message.bytes();
                break;
            case 13:
                tensor.external_data.push_back(decode_entry(message.item(), where));
                break;
            case 14:
                tensor.data_location = message.integer();
                break;
            default:
                message.unknown();
        }
    }
    if (!message.has(2)) message.missing("data_type");
    return tensor;
}

OnnxAttribute decode_attribute(std::string_view content, const std::string& where) {
    Message message("AttributeProto", content, where);
    OnnxAttribute attribute;
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                attribute.name = message.name();
                break;
            case 2:
                message.real();
                break;
            case 3:
                attribute.integers.push_back(message.integer());
                break;
            case 4:
                static_cast<void>(message.bytes());
                break;
            case 5:
                attribute.tensor = decode_tensor(message.bytes(), where);
                break;
            case 8:
                attribute.integers.push_back(message.integer_item());
                break;
            case 20:
                attribute.type = message.integer();
                break;
            default:
                message.unknown();
        }
    }
    constexpr std::array<std::pair<std::size_t, AttributeType>, 5> fields = {{{2, AttributeType::real},
                                                                              {3, AttributeType::integer},
                                                                              {4, AttributeType::string},
                                                                              {5, AttributeType::tensor},
                                                                              {8, AttributeType::integers}}};
    for (const auto& [number, type] : fields) {
        if (message.has(number)) attribute.values.push_back(type);
    }
    return attribute;
}

OnnxNode decode_node(std::string_view content, const std::string& where) {
    Message message("NodeProto", content, where);
    OnnxNode node;
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                node.inputs.push_back(message.name_item());
                break;
            case 2:
                node.outputs.push_back(message.name_item());
                break;
            case 3:
                node.name = message.name();
                break;
            case 4:
                node.op_type = message.name();
                break;
            case 5:
                node.attributes.push_back(decode_attribute(message.item(), where));
                break;
            case 7:
                node.domain = message.name();
                break;
            case 9:
                static_cast<void>(message.item());
                break;  // metadata_props
            default:
                message.unknown();
        }
    }
    // Empty messages need two bytes in a file, but many in memory.
    if (!message.has(2) || !message.has(4)) message.missing("output and op_type");
    return node;
}

std::string_view decode_value(std::string_view content, const std::string& where) {
    Message message("ValueInfoProto", content, where);
    std::string_view name;
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                name = message.name();
                break;
            case 2:
                static_cast<void>(message.bytes());
                break;  // type
            default:
                message.unknown();
        }
    }
    return name;
}

void decode_graph(std::string_view content, OnnxModel& model, const std::string& where) {
    Message message("GraphProto", content, where);
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                model.nodes.push_back(decode_node(message.item(), where));
                break;
            case 2:
                static_cast<void>(message.bytes());
                break;  // name
            case 5:
                model.initializers.push_back(decode_tensor(message.item(), where));
                break;
            case 11:
                model.inputs.push_back(decode_value(message.item(), where));
                break;
            case 12:
                model.outputs.push_back(decode_value(message.item(), where));
                break;
            case 13:
                static_cast<void>(message.item());
                break;  // value_info
            default:
                message.unknown();
        }
    }
}

std::pair<std::string_view, std::int64_t> decode_opset(std::string_view content, const std::string& where) {
    Message message("OperatorSetIdProto", content, where);
    std::pair<std::string_view, std::int64_t> opset;
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                opset.first = message.name();
                break;
            case 2:
                opset.second = message.integer();
                break;
            default:
                message.unknown();
        }
    }
    return opset;
}

}  // namespace

OnnxModel decode_onnx(std::string_view content, const std::string& where) {
    Message message("ModelProto", content, where);
    OnnxModel model;
    while (const std::uint64_t number = message.next()) {
        switch (number) {
            case 1:
                static_cast<void>(message.integer());
                break;  // ir_version
            case 2:
                static_cast<void>(message.bytes());
                break;  // producer_name
            case 7:
                decode_graph(message.bytes(), model, where);
                break;
            case 8:
                model.opsets.push_back(decode_opset(message.item(), where));
                break;
            case 14:
                static_cast<void>(message.item());
                break;  // metadata_props
            default:
                message.unknown();
        }
    }
    if (!message.has(7)) message.missing("graph");
    return model;
}

}  // namespace molkv
