// An open bundle: its manifest, its checked files, and the profile in use.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "family.h"
#include "file.h"
#include "golden.h"
#include "manifest.h"

namespace molkv {

class Bundle {
 public:
    // Open a bundle and make the checks 1 to 8 and 10 of docs/bundle-format.md, "What a reader checks". Opens all files
    // of the manifest. The class Store makes check 9 (shard.h).
    // profiles: the profiles that a provider can run, best first. profile: the profile that the user asks for; "": the
    // first of `profiles` that the bundle has. Throws a bundle error.
    Bundle(std::shared_ptr<const FileSource> source, const std::vector<std::string>& profiles,
           const std::string& profile);

    [[nodiscard]] const Manifest& manifest() const { return manifest_; }
    // The configuration of the model, with the context length and the expert window of the graph in use.
    [[nodiscard]] const ModelConfig& config() const { return config_; }
    [[nodiscard]] const Family& family() const { return *family_; }
    [[nodiscard]] const Graph& graph() const { return *graph_; }
    [[nodiscard]] const Table& table() const { return manifest_.experts; }
    [[nodiscard]] const std::string& where() const { return source_->where(); }
    [[nodiscard]] bool has(const std::string& name) const { return manifest_.files.contains(name); }
    // The path of a file, for messages.
    [[nodiscard]] std::string path(const std::string& name) const;

    // Return an open file of the manifest. The source is not asked again.
    [[nodiscard]] File open(const std::string& name) const;
    // Return the content of a file after comparing its hash (checks 12 and 16). Refuses files of 2 GiB and more: the
    // files that a driver reads whole are small, and ONNX Runtime reads no larger graph.
    [[nodiscard]] std::string read(const std::string& name) const;
    // Map a file after comparing its hash, which is computed from the same memory.
    [[nodiscard]] MappedFile map(const std::string& name) const;
    // Return the content of a graph of this profile after the checks 12 and 14.
    [[nodiscard]] std::string read_graph(const GraphFile& file) const;
    // Read the golden vectors of this profile.
    [[nodiscard]] Golden golden() const;
    // Hash every file of the manifest. Return a line for each damaged file; no lines if all are as exported.
    [[nodiscard]] std::vector<std::string> verify() const;

 private:
    [[nodiscard]] const Graph& choose_graph(const std::vector<std::string>& profiles, const std::string& profile) const;
    void open_files();
    void check_hash(const std::string& name, const std::string& found) const;

    std::shared_ptr<const FileSource> source_;
    Manifest manifest_;
    const Graph* graph_;  // in manifest_
    ModelConfig config_;
    const Family* family_;
    std::map<std::string, File> files_;
};

}  // namespace molkv
