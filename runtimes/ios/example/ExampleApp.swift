import Molkv
import SwiftUI

@main
struct ExampleApp: App {
    var body: some Scene {
        WindowGroup { ExampleView() }
    }
}

/// Shows the report of the self-test, then a text that grows.
struct ExampleView: View {
    @State private var text = ""
    private let prompt = "def "

    var body: some View {
        ScrollView { Text(text).frame(maxWidth: .infinity, alignment: .leading).padding() }
            .task {
                do {
                    try await run()
                } catch {
                    text += "\nerror: \(error.localizedDescription)"
                }
            }
    }

    private func run() async throws {
        guard let url = Bundle.main.url(forResource: "molkv", withExtension: "bundle") else {
            text = "error: the app has no folder molkv.bundle"
            return
        }
        let (session, report) = try await Task.detached {
            let model = try Model(path: url)
            let report = try model.selfTest()
            return (try model.session(), report)
        }.value
        text = "\(report)\nself-test: passed\n\n\(prompt)"
        for try await token in session.generate(prompt) {
            text += token.text
        }
    }
}
