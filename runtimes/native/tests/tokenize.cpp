// Run a tokenizer for tests/native/test_tokenizer.py: tokenize TOKENIZER.JSON < REQUESTS > ANSWERS.
//
// A request is one of four letters, a number of items in decimal, a line feed, and the items: "e" (encode) and "E"
// (encode with special tokens): the bytes of a text; "d" (decode): ids, each followed by a space; "s" (stream): two
// requests of ids in one, the prompt's ids and the new ids, separated by "|". The number is the size in bytes.
// Each answer is its size in bytes, a line feed, and the ids, the text, or the pieces of text, which are separated by
// the byte 0xFF. The answer to a text that the tokenizer cannot encode is "refused".
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "text_stream.h"
#include "tokenizer.h"

namespace {

std::vector<std::int32_t> read_ids(const std::string& text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::int32_t>(stream), {}};
}

std::string join(const std::vector<std::int32_t>& ids) {
    std::ostringstream stream;
    for (const std::int32_t id : ids) stream << id << " ";
    return stream.str();
}

std::string stream_pieces(const molkv::Tokenizer& tokenizer, const std::string& request) {
    const std::size_t border = request.find('|');
    const std::vector<std::int32_t> prompt = read_ids(request.substr(0, border));
    molkv::TextStream stream(tokenizer, prompt);
    std::string pieces;
    for (const std::int32_t id : read_ids(request.substr(border + 1))) pieces.append(stream.push(id)).append("\xFF");
    return pieces.append(stream.finish());
}

std::string encode(const molkv::Tokenizer& tokenizer, const std::string& text, bool add_special_tokens) {
    try {
        return join(tokenizer.encode(text, add_special_tokens));
    } catch (const molkv::Error&) {
        return "refused";
    }
}

std::string answer(const molkv::Tokenizer& tokenizer, char kind, const std::string& request) {
    if (kind == 'e' || kind == 'E') return encode(tokenizer, request, kind == 'E');
    if (kind == 'd') return tokenizer.decode(read_ids(request));
    return stream_pieces(tokenizer, request);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    try {
        std::ifstream file(argv[1], std::ios::binary);
        const molkv::Tokenizer tokenizer({std::istreambuf_iterator<char>(file), {}}, "tokenizer.json");
        char kind = 0;
        std::size_t size = 0;
        while (std::cin >> kind >> size) {
            std::string request(size, '\0');
            std::cin.get();
            std::cin.read(request.data(), static_cast<std::streamsize>(size));
            const std::string found = answer(tokenizer, kind, request);
            std::cout << found.size() << "\n" << found;
        }
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
