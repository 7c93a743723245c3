// Layouts of records, computed by hand from docs/bundle-format.md, "Record" and "Numbers".
#include "check.h"
#include "record.h"

namespace test = molkv::test;
using molkv::DType;
using molkv::ModelConfig;
using molkv::Table;

namespace {

ModelConfig config_of(const char* model_type, std::int64_t hidden_size) {
    ModelConfig config;
    config.model_type = model_type;
    config.hidden_size = hidden_size;
    config.num_experts = 2;
    config.expert_layers = {3};
    config.expert_key_size = 3;
    config.expert_window = 4;
    return config;
}

Table table_of(DType dtype, std::int64_t stride, std::vector<molkv::RecordField> fields) {
    Table table;
    table.dtype = dtype;
    table.stride = stride;
    table.fields = std::move(fields);
    return table;
}

void refused(const ModelConfig& config, const Table& table, const char* part) {
    test::refused([&] { molkv::check_record(config, table, "m"); }, molkv::Kind::bundle, part, part);
}

void check_dtypes() {
    const ModelConfig config = config_of("molkv", 32);
    const std::vector<molkv::RecordField> start = {{"embedding", DType::float16, {32}, 0},
                                                   {"expert_key.3", DType::float16, {2, 3}, 64}};
    const auto with = [&](std::vector<molkv::RecordField> more) {
        std::vector<molkv::RecordField> fields = start;
        fields.insert(fields.end(), more.begin(), more.end());
        return fields;
    };
    molkv::check_record(config, table_of(DType::float16, 256, with({{"expert_value.3", DType::float16, {2, 32}, 76}})),
                        "m");
    const Table int8 =
        table_of(DType::int8, 192,
                 with({{"expert_scale.3", DType::float32, {2, 1}, 76}, {"expert_value.3", DType::int8, {2, 32}, 84}}));
    molkv::check_record(config, int8, "m");
    molkv::check_record(
        config,
        table_of(DType::int4, 128,
                 with({{"expert_scale.3", DType::float16, {2, 1}, 76}, {"expert_value.3", DType::int4, {2, 32}, 80}})),
        "m");
    refused(config, table_of(DType::nf4, 128, start), "rows of a multiple of 64 numbers");
    refused(config, table_of(DType::int8, 192, start), "found no field 2, expected expert_scale.3");
    Table table = int8;
    table.fields.push_back({"more", DType::int8, {1}, 148});
    refused(config, table, "found 5 fields, expected 4");
    table = int8;
    table.stride = 256;
    refused(config, table, "stride: found 256, expected 192");
    table.stride = 128;
    refused(config, table, "stride: found 128");
}

void check_sizes() {
    // An odd number of float16: the next part starts at a multiple of 4.
    molkv::check_record(
        config_of("mole", 3),
        table_of(DType::float16, 64,
                 {{"embedding", DType::float16, {3}, 0}, {"expert_value.3", DType::float16, {2, 3}, 8}}),
        "m");
    // From 16,384 bytes on, records are whole pages; a smaller one is a multiple of 64 bytes.
    ModelConfig dense = config_of("mole", 4095);
    dense.num_experts = 0;
    dense.expert_layers = {};
    molkv::check_record(dense, table_of(DType::float32, 16384, {{"embedding", DType::float32, {4095}, 0}}), "m");
    dense.hidden_size = 4096;
    molkv::check_record(dense, table_of(DType::float32, 20480, {{"embedding", DType::float32, {4096}, 0}}), "m");
    refused(dense, table_of(DType::float32, 16448, {{"embedding", DType::float32, {4096}, 0}}), "expected 20480");
    // 2^31 - 1 experts of 2^31 - 1 numbers do not fit into 64 bits when multiplied by 4 bytes.
    ModelConfig huge = config_of("mole", 2147483647);
    huge.num_experts = 2147483647;
    const std::int64_t stride = std::int64_t{1} << 58U;
    refused(huge,
            table_of(DType::float32, stride,
                     {{"embedding", DType::float32, {2147483647}, 0},
                      {"expert_value.3", DType::float32, {2147483647, 2147483647}, 8589934588}}),
            "expected more bytes");
}

}  // namespace

int main() {
    check_dtypes();
    check_sizes();
    return test::finish();
}
