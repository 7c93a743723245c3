// The memory that Swift and the C API share.
import CMolkv

/// Copies of values, which a call of the C API reads.
final class Copies {
    private var blocks: [UnsafeMutableRawPointer] = []

    deinit { for block in blocks { block.deallocate() } }

    static func use<Result>(_ body: (Copies) throws -> Result) rethrows -> Result {
        let copies = Copies()
        return try withExtendedLifetime(copies) { try body(copies) }
    }

    /// Copy an array. The result is not NULL, even if the array is empty.
    func copy<Element: BitwiseCopyable>(_ values: [Element]) -> UnsafePointer<Element> {
        let size = max(values.count, 1) * MemoryLayout<Element>.stride
        let block = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: MemoryLayout<Element>.alignment)
        blocks.append(block)
        return UnsafePointer(block.initializeMemory(as: Element.self, from: values, count: values.count))
    }

    /// Copy a text that must end at its first NUL.
    func copy(_ text: String) throws -> UnsafePointer<CChar> {
        guard !text.utf8.contains(0) else {
            throw MolkvError.request("found a NUL character in \(text.debugDescription), expected none")
        }
        return copy(Array(text.utf8CString))
    }
}

/// Return the elements that `fill` writes. It is called again if it needs more memory than `capacity`.
func filled<Element: ExpressibleByIntegerLiteral>(
    capacity: Int, _ fill: (UnsafeMutablePointer<Element>, Int, inout Int) -> molkv_status
) throws -> [Element] {
    var elements = [Element](repeating: 0, count: capacity)
    var count = 0
    try check(fill(&elements, capacity, &count))
    return try count > capacity ? filled(capacity: count, fill) : Array(elements.prefix(count))
}
