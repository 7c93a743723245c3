// swift-tools-version: 6.0
// The tests of the Swift package: a program, since it needs no test framework and runs on Linux (make test-swift).
import PackageDescription

let package = Package(
    name: "MolkvTest",
    platforms: [.macOS(.v13)],
    dependencies: [.package(name: "Molkv", path: "..")],
    targets: [
        .executableTarget(
            name: "MolkvTest", dependencies: [.product(name: "Molkv", package: "Molkv")], path: "MolkvTest")
    ]
)
