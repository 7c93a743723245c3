// The list of presets: providers of ONNX Runtime, and the options that bundles need.
#include "onnxruntime.h"

namespace molkv {

// NOLINTNEXTLINE(readability-function-size): it is a table
const std::vector<Preset>& presets() {
    const std::vector<std::string> any_value;
    const std::vector<std::string> flag = {"0", "1"};
    const std::vector<std::string> fixed = {"coreml", "nnapi"};
    const std::vector<std::string> any_profile = {"cpu", "coreml", "nnapi"};
    // This fusion turns MatMul and Add into a Gemm whose bias is not a constant. Compilers refuse such a Gemm. In
    // addition, the CoreML provider writes the weights of a Gemm as text, which takes gigabytes for a large model
    // (onnxruntime issue 32212).
    const std::pair<const std::string, std::string> fusion_off = {"optimization.disable_specified_optimizers",
                                                                  "MatMulAddFusion"};
    static const std::vector<Preset> list = {
        {.name = "cpu", .provider = "CPUExecutionProvider", .appended = "", .profiles = any_profile},
        {.name = "xnnpack",
         .provider = "XnnpackExecutionProvider",
         .appended = "XNNPACK",
         .profiles = {"nnapi", "coreml", "cpu"},
         .known = {{"intra_op_num_threads", any_value}},
         // With spinning, XNNPACK's threads and ONNX Runtime's would compete for the cores.
         .config = {{"session.intra_op.allow_spinning", "0"}, fusion_off},
         .max_abs = 1e-3,
         .threads = "intra_op_num_threads"},
        {.name = "coreml",
         .provider = "CoreMLExecutionProvider",
         .appended = "CoreML",
         .profiles = fixed,
         .known = {{"ModelFormat", {"MLProgram", "NeuralNetwork"}},
                   {"MLComputeUnits", {"ALL", "CPUOnly", "CPUAndGPU", "CPUAndNeuralEngine"}},
                   {"RequireStaticInputShapes", flag},
                   {"EnableOnSubgraphs", flag},
                   {"ProfileComputePlan", flag},
                   {"AllowLowPrecisionAccumulationOnGPU", flag},
                   {"SpecializationStrategy", {"Default", "FastPrediction"}},
                   {"ModelCacheDirectory", any_value}},
         .options = {{"ModelFormat", "MLProgram"}, {"MLComputeUnits", "ALL"}, {"RequireStaticInputShapes", "1"}},
         .config = {fusion_off},
         .max_abs = 0.25},
        {.name = "nnapi",
         .provider = "NnapiExecutionProvider",
         .appended = "",
         .profiles = {"nnapi"},
         .known = {{"USE_FP16", flag}, {"USE_NCHW", flag}, {"CPU_DISABLED", flag}, {"CPU_ONLY", flag}},
         .options = {{"CPU_DISABLED", "1"}},  // its own CPU code is slower than ONNX Runtime's
         .config = {fusion_off},
         .max_abs = 0.25},
        {.name = "openvino",
         .provider = "OpenVINOExecutionProvider",
         .appended = "OpenVINO",
         .profiles = fixed,
         .known = {{"device_type", any_value},
                   {"num_of_threads", any_value},
                   {"num_streams", any_value},
                   {"cache_dir", any_value},
                   {"load_config", any_value},
                   {"precision", {"FP32", "FP16", "ACCURACY"}},
                   {"model_priority", {"LOW", "MEDIUM", "HIGH", "DEFAULT"}},
                   {"enable_qdq_optimizer", {"True", "False"}}},
         .options = {{"device_type", "CPU"}, {"precision", "FP32"}},
         .config = {fusion_off},
         .max_abs = 1e-3,
         .threads = "num_of_threads"},
        {.name = "qnn",
         .provider = "QNNExecutionProvider",
         .appended = "QNN",
         .profiles = {"nnapi", "coreml"},
         .known = {{"backend_type", {"htp", "gpu", "cpu"}},
                   {"htp_performance_mode", any_value},
                   {"htp_graph_finalization_optimization_mode", {"0", "1", "2", "3"}},
                   {"enable_htp_fp16_precision", flag},
                   {"backend_path", any_value},
                   {"htp_arch", any_value},
                   {"soc_model", any_value},
                   {"vtcm_mb", any_value},
                   {"device_id", any_value},
                   {"profiling_level", any_value}},
         .options = {{"backend_type", "htp"},
                     {"htp_performance_mode", "burst"},
                     {"htp_graph_finalization_optimization_mode", "3"},
                     {"enable_htp_fp16_precision", "1"}},
         .config = {fusion_off},
         .max_abs = 0.25},
        {.name = "cuda",
         .provider = "CUDAExecutionProvider",
         .appended = "",
         .profiles = any_profile,
         .known = {{"device_id", any_value}, {"gpu_mem_limit", any_value}, {"use_tf32", any_value}},
         .options = {{"use_tf32", "0"}},
         .max_abs = 1e-3,
         .own_memory = true},
    };
    return list;
}

}  // namespace molkv
