// Reading saved sessions: the checks, and the numbers of the KV cache.
#include "session_file.h"

#include <algorithm>
#include <cstring>

#include "json.h"
#include "session_identity.h"

namespace molkv {

namespace {

constexpr std::size_t buffer_bytes = std::size_t{1} << 20U;

std::string shape_text(const std::vector<std::int64_t>& shape) {
    std::string shown = "[";
    for (const std::int64_t size : shape) shown += text(shown.size() > 1 ? ", " : "", size);
    return shown + "]";
}

// Return whether an exponent of the numbers has all its bits, as those of NaN and infinity.
template <typename Bits>
bool has_exponent(std::span<const std::byte> numbers, Bits exponent) {
    Bits found = 0;
    for (std::size_t i = 0; i < numbers.size() / sizeof(Bits); i++) {
        Bits bits;
        std::memcpy(&bits, numbers.data() + i * sizeof bits, sizeof bits);
        found |= static_cast<Bits>((bits & exponent) == exponent);
    }
    return found != 0;
}

bool is_finite(std::span<const std::byte> numbers, DType dtype) {
    if (dtype == DType::int8) return true;
    if (dtype == DType::float16) return !has_exponent<std::uint16_t>(numbers, 0x7c00);
    return !has_exponent<std::uint32_t>(numbers, 0x7f800000);
}

}  // namespace

SessionFile::SessionFile(const std::string& path, const Bundle& bundle)
    : file_(File::open(path, Kind::request)), header_(read_safetensors(file_, Kind::request)) {
    check_version();
    check_hash();
    check_messages();
    check_owner(bundle);
    read_ids(bundle);
    check_cache(bundle);
}

std::string SessionFile::metadata(const std::string& name) const {
    const auto found = header_.metadata.find(name);
    return found == header_.metadata.end() ? "" : found->second;
}

void SessionFile::check_version() const {
    const std::string found = metadata("session_version");
    if (found != session_version)
        fail(Kind::request, file_.where(), ": session_version: found \"", found.substr(0, 20), "\", expected \"",
             session_version, "\"; is this a saved session?");
}

void SessionFile::check_hash() const {
    const std::string expected = metadata("sha256");
    if (expected.size() != 64 || expected.find_first_not_of("0123456789abcdef") != std::string::npos)
        fail(Kind::request, file_.where(), ": sha256: found \"", expected.substr(0, 80),
             "\", expected 64 digits from 0 to f");
    std::string header(static_cast<std::size_t>(header_.data_offset), '\0');
    file_.read(0, std::as_writable_bytes(std::span(header)), Kind::request);
    for (std::size_t at = header.find(expected); at != std::string::npos; at = header.find(expected, at + 64))
        header.replace(at, 64, session_no_digest);
    Sha256 hash;
    hash.update(header);
    std::vector<std::byte> buffer(std::min<std::uint64_t>(buffer_bytes, file_.size()));
    for (std::uint64_t at = header_.data_offset; at < file_.size();) {
        const auto part = std::span(buffer).first(
            static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), file_.size() - at)));
        file_.read(at, part, Kind::request);
        hash.update(part);
        at += part.size();
    }
    if (hash.hex() != expected)
        fail(Kind::request, file_.where(), ": its sha256 does not match its contents; the file is damaged");
}

void SessionFile::check_messages() const {
    const auto found = header_.metadata.find("messages");
    if (found == header_.metadata.end()) return;
    const Json json(found->second, file_.where() + ": messages", Kind::request);
    if (json.root().type() != JsonValue::Type::array) json.root().refuse("another value", "a list of messages");
    for (const JsonValue& message : json.root().items()) {
        if (message.type() != JsonValue::Type::object) message.refuse("another value", "an object of texts");
        for (const JsonValue& value : message.items()) static_cast<void>(value.string());
    }
}

void SessionFile::check_owner(const Bundle& bundle) const {
    const Json json(metadata("tables"), file_.where() + ": tables", Kind::request);
    json.root().expect_fields({"experts"});
    if (json.root()["experts"].string() != bundle.table().id)
        fail(Kind::request, file_.where(), ": belongs to another bundle (tables: experts: found ",
             json.root()["experts"].string().substr(0, 80), ", expected ", bundle.table().id, ")");
    if (metadata("graph") != session_graph(bundle))
        fail(Kind::request, file_.where(), ": belongs to another graph than that of the bundle's profile ",
             bundle.graph().profile, " (graph: found \"", metadata("graph").substr(0, 80), "\", expected \"",
             session_graph(bundle), "\")");
}

void SessionFile::read_ids(const Bundle& bundle) {
    const std::int64_t most = bundle.config().max_position_embeddings + 1;
    const auto found = header_.tensors.find(session_ids);
    const bool exists = found != header_.tensors.end();
    // The shape determines the memory for the ids.
    const bool fits = exists && found->second.dtype == "I32" && found->second.shape.size() == 1 &&
                      found->second.shape[0] >= 1 && found->second.shape[0] <= most;
    if (!fits)
        fail(Kind::request, file_.where(), ": ", session_ids, ": found ",
             exists ? found->second.dtype + " " + shape_text(found->second.shape) : "no tensor",
             ", expected I32 [1 to ", most, "]");
    ids_.resize(static_cast<std::size_t>(found->second.shape[0]));
    file_.read(found->second.offset, std::as_writable_bytes(std::span(ids_)), Kind::request);
    for (const std::int32_t id : ids_)
        if (id < 0 || id >= bundle.config().vocab_size)
            fail(Kind::request, file_.where(), ": ", session_ids, ": found ", id, ", expected ids from 0 to ",
                 bundle.config().vocab_size - 1, " (the vocabulary)");
}

void SessionFile::check_cache(const Bundle& bundle) {
    const ModelConfig& config = bundle.config();
    const std::size_t tensors = 2 * config.caches.size();
    const auto first = header_.tensors.find(session_tensor(KvCache::name(config.caches, 0)));
    if (header_.tensors.size() != tensors + 1 || first == header_.tensors.end() || first->second.shape.size() != 3)
        fail(Kind::request, file_.where(), ": found ", header_.tensors.size(), " tensors, expected ", session_ids,
             " and the KV cache of this model: ", tensors, " tensors of 3 dimensions");
    length_ = first->second.shape[1];
    const std::int64_t most = std::min(static_cast<std::int64_t>(ids_.size()), config.max_position_embeddings);
    if (length_ > most)
        fail(Kind::request, file_.where(), ": found a KV cache of ", length_, " tokens, expected at most ", most);
    const char* dtype = session_dtype(bundle.graph().kv_dtype);
    for (std::size_t tensor = 0; tensor < tensors; tensor++) {
        const std::string name = session_tensor(KvCache::name(config.caches, tensor));
        const CacheShape& cache = config.caches[tensor / 2];
        const std::vector<std::int64_t> shape = {cache.heads, length_, cache.head_dim};
        const auto found = header_.tensors.find(name);
        const bool exists = found != header_.tensors.end();
        if (!exists || found->second.dtype != dtype || found->second.shape != shape)
            fail(Kind::request, file_.where(), ": belongs to a graph with another KV cache (", name, ": found ",
                 exists ? found->second.dtype + " " + shape_text(found->second.shape) : "no tensor", ", expected ",
                 dtype, " ", shape_text(shape), ")");
    }
}

void SessionFile::read_tensor(const StoredTensor& tensor, KvCache& cache, std::size_t number, int sequence) const {
    const auto bytes = static_cast<std::size_t>(length_) * cache.row_bytes(number);  // of a head
    std::vector<std::byte> rows(bytes);
    for (std::int64_t head = 0; head < cache.heads(number); head++) {
        file_.read(tensor.offset + static_cast<std::uint64_t>(head) * bytes, rows, Kind::request);
        if (!is_finite(rows, cache.dtype()))
            fail(Kind::request, file_.where(), ": ", session_tensor(cache.name(number)),
                 ": found NaN or infinity, expected finite numbers");
        cache.write(number, sequence, head, length_, rows.data());
    }
}

void SessionFile::read_into(KvCache& cache, int sequence) const {
    try {
        for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++)
            read_tensor(header_.tensors.at(session_tensor(cache.name(tensor))), cache, tensor, sequence);
    } catch (...) {
        cache.clear(sequence, length_);
        throw;
    }
}

}  // namespace molkv
