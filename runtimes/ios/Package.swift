// swift-tools-version: 6.0
// The Swift package: module Molkv, and the driver in C++ that it compiles.
import PackageDescription

// ONNX Runtime as a framework that is linked statically (README.md). Swift on Linux has no frameworks: the tests there
// link a shared library.
#if os(Linux)
    let onnxruntime: [Target] = []
#else
    let onnxruntime: [Target] = [.binaryTarget(name: "onnxruntime", path: "onnxruntime.xcframework")]
#endif

let package = Package(
    name: "Molkv",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Molkv", targets: ["Molkv"])],
    targets: [
        .target(name: "Molkv", dependencies: ["CMolkv"]),
        .target(
            name: "CMolkv",
            dependencies: onnxruntime.map { .byName(name: $0.name) },
            sources: ["src"],
            cxxSettings: [
                .headerSearchPath("headers"),
                .define("ORT_API_MANUAL_INIT"),
                // Sampling is defined to the bit, so no two operations may be joined into one.
                .unsafeFlags(["-ffp-contract=off"]),
            ],
            linkerSettings: [.linkedFramework("CoreML", .when(platforms: [.iOS, .macOS]))]
        ),
    ] + onnxruntime,
    cxxLanguageStandard: .cxx20
)
