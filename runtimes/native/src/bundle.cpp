// An open bundle: the choice of the profile, the sizes and the hashes of its files.
//
// Check 13 of docs/bundle-format.md (where ONNX Runtime looks for the weights) does not apply: this driver maps the
// weights itself and gives the memory to ONNX Runtime, which opens no file.
#include "bundle.h"

#include <algorithm>
#include <utility>

#include "digest.h"
#include "graph_file.h"
#include "interface.h"
#include "record.h"

namespace molkv {

namespace {

constexpr const char* manifest_name = "manifest.json";
// The manifest is read before any of its sizes is known. The interface of 65,536 layers needs about 100 MB.
constexpr std::uint64_t most_manifest_bytes = std::uint64_t{1} << 28U;
constexpr std::uint64_t most_bytes_in_memory = (std::uint64_t{1} << 31U) - 1;
constexpr std::size_t hashed_bytes_per_read = std::size_t{1} << 20U;

Manifest read_manifest(const FileSource& source) {
    const File file = source.open(manifest_name);
    if (file.size() > most_manifest_bytes) {
        fail(Kind::bundle, file.where(), ": has ", file.size(), " bytes, expected at most ", most_manifest_bytes);
    }
    return parse_manifest(file.read_all(), file.where());
}

// Return the configuration that the driver runs a graph with.
ModelConfig restricted(ModelConfig config, const Graph& graph) {
    config.max_position_embeddings = graph.context_length;
    config.expert_window = graph.expert_window;
    return config;
}

std::string joined(const std::vector<std::string>& names) {
    std::string result;
    for (const std::string& name : names) result.append(result.empty() ? "" : " or ").append(name);
    return result;
}

}  // namespace

Bundle::Bundle(std::shared_ptr<const FileSource> source, const std::vector<std::string>& profiles,
               const std::string& profile)
    : source_(std::move(source)),
      manifest_(read_manifest(*source_)),
      graph_(&choose_graph(profiles, profile)),
      config_(restricted(manifest_.model, *graph_)),
      family_(find_family(config_.model_type)) {
    check_record(config_, manifest_.experts, path(manifest_name));
    for (const GraphFile& file : graph_->files) check_interface(config_, *graph_, file, path(file.file));
    open_files();
}

const Graph& Bundle::choose_graph(const std::vector<std::string>& profiles, const std::string& profile) const {
    const std::vector<std::string> wanted = profile.empty() ? profiles : std::vector{profile};
    for (const std::string& name : wanted) {
        for (const Graph& graph : manifest_.graphs) {
            if (graph.profile == name) return graph;
        }
    }
    std::vector<std::string> found;
    for (const Graph& graph : manifest_.graphs) found.push_back(graph.profile);
    fail(Kind::bundle, where(), ": has graphs for the profile ", joined(found), ", expected ", joined(wanted),
         ". Add a graph with: molkv-export export CHECKPOINT ", where(), " --add-profile ", wanted.front());
}

void Bundle::open_files() {
    for (const auto& [name, info] : manifest_.files) {
        File file = source_->open(name);
        if (file.size() != info.size) {
            fail(Kind::bundle, file.where(), ": has ", file.size(), " bytes, the manifest says ", info.size,
                 "; the file is truncated or was replaced");
        }
        files_.emplace(name, std::move(file));
    }
}

std::string Bundle::path(const std::string& name) const {
    return where() + "/" + name;
}

File Bundle::open(const std::string& name) const {
    const auto found = files_.find(name);
    if (found == files_.end()) fail(Kind::bundle, path(name), ": is not part of the bundle");
    return found->second.duplicate();
}

void Bundle::check_hash(const std::string& name, const std::string& found) const {
    const std::string& expected = manifest_.files.at(name).sha256;
    if (found != expected) {
        fail(Kind::bundle, path(name), ": has sha256 ", found.substr(0, 12), "..., the manifest says ",
             expected.substr(0, 12), "...; the file is damaged, so copy or export the bundle again");
    }
}

std::string Bundle::read(const std::string& name) const {
    const File file = open(name);
    if (file.size() > most_bytes_in_memory) {
        fail(Kind::bundle, file.where(), ": has ", file.size(), " bytes, expected at most ", most_bytes_in_memory);
    }
    std::string content = file.read_all();
    Sha256 digest;
    digest.update(content);
    check_hash(name, digest.hex());
    return content;
}

MappedFile Bundle::map(const std::string& name) const {
    constexpr std::size_t slice = 4 << 20U;  // bytes that are in memory at a time
    MappedFile mapped(open(name));
    Sha256 digest;
    for (std::size_t begin = 0; begin < mapped.bytes().size(); begin += slice) {
        const std::size_t end = std::min(begin + slice, mapped.bytes().size());
        digest.update(mapped.bytes().subspan(begin, end - begin));
        mapped.release_pages(begin, end);
    }
    check_hash(name, digest.hex());
    return mapped;
}

std::string Bundle::read_graph(const GraphFile& file) const {
    std::string content = read(file.file);
    check_graph_file(content, path(file.file), graph_->data, manifest_.files.at(graph_->data).size);
    return content;
}

Golden Bundle::golden() const {
    return parse_golden(read(graph_->golden), path(graph_->golden), config_.vocab_size,
                        config_.max_position_embeddings);
}

std::vector<std::string> Bundle::verify() const {
    std::vector<std::string> findings;
    std::vector<std::byte> buffer(hashed_bytes_per_read);
    for (const auto& [name, file] : files_) {
        try {
            Sha256 digest;
            for (std::uint64_t place = 0; place < file.size(); place += buffer.size()) {
                const auto part = std::span(buffer).first(
                    static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), file.size() - place)));
                file.read(place, part);
                digest.update(part);
            }
            const std::string found = digest.hex();
            const std::string& expected = manifest_.files.at(name).sha256;
            if (found == expected) continue;
            findings.push_back(text(path(name), ": has sha256 ", found.substr(0, 12), "..., the manifest says ",
                                    expected.substr(0, 12), "..."));
        } catch (const Error& error) {
            findings.emplace_back(error.what());
        }
    }
    return findings;
}

}  // namespace molkv
