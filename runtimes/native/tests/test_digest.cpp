// SHA-256 and CRC-32, compared with the examples of their standards and of docs/bundle-format.md.
#include <array>
#include <string>

#include "check.h"
#include "digest.h"

namespace test = molkv::test;

namespace {

std::string sha256(std::string_view content, std::size_t piece) {
    molkv::Sha256 digest;
    for (; content.size() > piece; content.remove_prefix(piece)) digest.update(content.substr(0, piece));
    digest.update(content);
    return digest.hex();
}

std::uint32_t crc32(std::string_view content, std::uint32_t before = 0) {
    return molkv::crc32(std::as_bytes(std::span(content)), before);
}

void check_sha256() {
    const std::string letters = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    const std::string million(1'000'000, 'a');
    for (const std::size_t piece : {1U, 7U, 63U, 64U, 65U, 4096U}) {
        // NIST, "Examples with Intermediate Values": SHA-256.
        test::equal(sha256("", piece), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "no bytes");
        test::equal(sha256("abc", piece), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "abc");
        test::equal(sha256(letters, piece), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
                    "56 bytes");
        test::equal(sha256(million, piece), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
                    "a million bytes");
    }
    // Every length of the last block gives the same hash in pieces and at once.
    for (std::size_t size = 0; size < 200; size++) {
        test::equal(sha256(million.substr(0, size), 3), sha256(million.substr(0, size), 1000), "a hash in pieces");
    }
}

void check_crc32() {
    test::equal(crc32("123456789"), 0xcbf43926U, "the check value of CRC-32");
    test::equal(crc32(""), 0U, "the CRC-32 of no bytes");
    test::equal(crc32("6789", crc32("12345")), 0xcbf43926U, "a CRC-32 in two pieces");
    const std::string text = "The quick brown fox jumps over the lazy dog";
    test::equal(crc32(text), 0x414fa339U, "the CRC-32 of 43 bytes");
    for (std::size_t cut = 0; cut <= text.size(); cut++) {
        test::equal(crc32(text.substr(cut), crc32(text.substr(0, cut))), 0x414fa339U, "a CRC-32 in two pieces");
    }
    // docs/bundle-format.md, "Record": the id 0123456789abcdef, row 258 and a record of 60 zeros.
    const std::string id = "\x01\x23\x45\x67\x89\xab\xcd\xef";
    const std::string row("\x02\x01\0\0\0\0\0\0", 8);
    test::equal(crc32(id + row + std::string(60, '\0')), 0xde7960deU, "the checksum of a record");
}

}  // namespace

int main() {
    check_sha256();
    check_crc32();
    return test::finish();
}
