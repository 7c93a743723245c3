// The tests of the Swift package: MolkvTest runtimes/conformance
import Foundation

let folder = URL(fileURLWithPath: CommandLine.arguments[1])
let conforms = try await Conformance(folder: folder).run()
let behaves = try await Behaviour(bundles: folder.appendingPathComponent("bundles")).run()
exit(conforms && behaves ? 0 : 1)
