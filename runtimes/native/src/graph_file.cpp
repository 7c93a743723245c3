// Checks of an ONNX file: operator sets, names, nodes and tensors. onnx_model.cpp checks the fields of messages.
#include "graph_file.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>
#include <unordered_set>

#include "error.h"
#include "onnx_model.h"
#include "operators.h"
#include "safetensors.h"

namespace molkv {

namespace {

// Some operators of ONNX Runtime store dimensions and attributes in 32 bits.
constexpr std::int64_t largest_integer = std::numeric_limits<std::int32_t>::max();

std::string_view shown(std::string_view name) {
    return name.substr(0, 100);
}

// Return the bytes of a number, by ONNX's numbers of float32, uint8, int8, int64 and float16; 0 for other types.
std::uint64_t item_bytes(std::int64_t data_type) {
    switch (data_type) {
        case 1:
            return 4;
        case 2:
        case 3:
            return 1;
        case 7:
            return 8;
        case 10:
            return 2;
        default:
            return 0;
    }
}

// Return the value of a decimal number of 1 to 18 digits, or -1 for any other text.
std::int64_t decimal(std::string_view digits) {
    if (digits.empty() || digits.size() > 18) return -1;
    if (digits.find_first_not_of("0123456789") != std::string_view::npos) return -1;
    std::int64_t value = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return value;
}

std::string shape_of(const std::vector<std::string_view>& names) {
    std::string shape;
    for (const std::string_view name : names) shape += name.empty() ? '-' : 'x';
    return shape;
}

class GraphCheck {
 public:
    GraphCheck(const std::string& where, const std::string& data, std::uint64_t data_size)
        : where_(where), data_(data), data_size_(data_size) {}

    void run(const OnnxModel& model) {
        check_opsets(model);
        for (const std::string_view name : model.inputs) define(name);
        for (const OnnxTensor& tensor : model.initializers) {
            check_tensor(tensor);
            define(tensor.name);
        }
        for (const OnnxNode& node : model.nodes) {
            check_node(node);
            for (const std::string_view name : node.inputs) {
                if (!name.empty()) check_defined(name);
            }
            for (const std::string_view name : node.outputs) define(name);
        }
        for (const std::string_view name : model.outputs) check_defined(name);
    }

 private:
    template <typename... Parts>
    [[noreturn]] void refuse(const Parts&... parts) const {
        fail(Kind::bundle, where_, ": ", parts..., "; export the bundle again");
    }

    void check_opsets(const OnnxModel& model) const {
        std::set<std::string_view> domains;
        for (const auto& [domain, version] : model.opsets) {
            const bool known = (domain.empty() && version == 22) || (domain == "com.microsoft" && version == 1);
            if (!known || !domains.insert(domain).second) {
                refuse("found operator set ", version, " of the domain \"", shown(domain),
                       "\", expected 22 of the default domain and, at most once, 1 of com.microsoft");
            }
        }
        if (!domains.contains("")) refuse("found no operator set of the default domain, expected version 22");
    }

    void define(std::string_view name) {
        if (name.empty()) refuse("defines a value without a name");
        if (!defined_.insert(name).second) refuse("defines \"", shown(name), "\" twice");
    }

    void check_defined(std::string_view name) const {
        if (!defined_.contains(name)) refuse("uses \"", shown(name), "\", which is not defined before its use");
    }

    void check_node(const OnnxNode& node) const {
        const std::string name = text("node \"", shown(node.name), "\" (", shown(node.op_type), ")");
        const Operator* allowed = find_operator(node.domain, node.op_type);
        if (allowed == nullptr) {
            refuse(name, " has an operator of the domain \"", shown(node.domain), "\" that dense graphs may not have");
        }
        check_count(name, "inputs", shape_of(node.inputs), allowed->inputs);
        check_count(name, "outputs", shape_of(node.outputs), allowed->outputs);
        std::set<std::string_view> names;
        for (const OnnxAttribute& attribute : node.attributes) {
            if (!is_sound(attribute, *allowed) || !names.insert(attribute.name).second) {
                refuse(name, " has an attribute \"", shown(attribute.name), "\" whose name or value is not allowed");
            }
            if (!attribute.tensor) continue;
            if (!attribute.tensor->external_data.empty()) {
                refuse(name, " has a tensor in another file, expected it in the graph");
            }
            check_tensor(*attribute.tensor);
        }
    }

    void check_count(const std::string& name, const char* what, const std::string& found,
                     std::string_view allowed) const {
        if (is_allowed(allowed, found)) return;
        refuse(name, " has the ", what, " \"", found.substr(0, 30), "\", expected \"", allowed,
               "\" (x: has a name, -: empty, a space: or)");
    }

    // Whether an attribute has one value, of the allowed type, and its integers are from -1 to 2^31 - 1.
    static bool is_sound(const OnnxAttribute& attribute, const Operator& allowed) {
        const std::optional<AttributeType> type = attribute_type(allowed, attribute.name);
        if (!type || attribute.type != static_cast<std::int64_t>(*type)) return false;
        if (attribute.values.size() != 1 || attribute.values.front() != *type) return false;
        return std::all_of(attribute.integers.begin(), attribute.integers.end(),
                           [](std::int64_t n) { return n >= -1 && n <= largest_integer; });
    }

    // Return the bytes of a tensor, which may be more than 64 bits can count; then the largest number.
    [[nodiscard]] std::uint64_t tensor_bytes(const OnnxTensor& tensor) const {
        constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
        std::uint64_t bytes = item_bytes(tensor.data_type);
        const bool sound = std::all_of(tensor.shape.begin(), tensor.shape.end(),
                                       [](std::int64_t size) { return size >= 0 && size <= largest_integer; });
        if (bytes == 0 || !sound || tensor.shape.size() > most_dimensions) {
            refuse("tensor \"", shown(tensor.name), "\" has the data type ", tensor.data_type, " and ",
                   tensor.shape.size(), " dimensions, expected the data type 1, 2, 3, 7 or 10 and at most ",
                   most_dimensions, " dimensions, each from 0 to 2147483647");
        }
        if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) return 0;
        for (const std::int64_t size : tensor.shape) {
            const auto factor = static_cast<std::uint64_t>(size);
            bytes = bytes > most / factor ? most : bytes * factor;
        }
        return bytes;
    }

    void check_tensor(const OnnxTensor& tensor) const {
        const std::uint64_t bytes = tensor_bytes(tensor);
        if (tensor.data_location == 0 && tensor.external_data.empty()) {
            const std::size_t found = tensor.raw_data ? tensor.raw_data->size() : 0;
            if (found == bytes) return;
            refuse("tensor \"", shown(tensor.name), "\" has ", found, " bytes, expected ", bytes);
        }
        std::string_view location;
        std::int64_t offset = -1;
        std::int64_t length = -1;
        for (const auto& [key, value] : tensor.external_data) {
            if (key == "location") location = value;
            if (key == "offset") offset = decimal(value);
            if (key == "length") length = decimal(value);
        }
        // Three entries that set all three values: none is missing, occurs twice or has another key.
        const bool whole = tensor.external_data.size() == 3 && offset >= 0 && length >= 0 && location == data_;
        const bool fits = whole && static_cast<std::uint64_t>(length) == bytes &&
                          static_cast<std::uint64_t>(offset) + static_cast<std::uint64_t>(length) <= data_size_;
        if (fits && !tensor.raw_data && tensor.data_location == 1) return;
        refuse("tensor \"", shown(tensor.name), "\" has its data in \"", shown(location), "\" at byte ", offset,
               " with length ", length, ", expected ", bytes, " bytes inside ", data_, ", which has ", data_size_,
               " bytes");
    }

    const std::string& where_;
    const std::string& data_;
    std::uint64_t data_size_;
    std::unordered_set<std::string_view> defined_;
};

}  // namespace

void check_graph_file(std::string_view content, const std::string& where, const std::string& data,
                      std::uint64_t data_size) {
    GraphCheck(where, data, data_size).run(decode_onnx(content, where));
}

}  // namespace molkv
