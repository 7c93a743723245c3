// The four ways to run the golden texts.
#include "selftest.h"

#include <algorithm>
#include <functional>

#include "generation.h"
#include "golden.h"
#include "golden_pieces.h"
#include "session.h"

namespace molkv {

namespace {

constexpr std::size_t piece_length = 48;  // not a multiple of the common windows 32 and 64
constexpr std::size_t batch_steps = 48;   // positions of each text in a batch

std::int64_t length_of(const GoldenText& text) {
    return static_cast<std::int64_t>(text.input_ids.size());
}

// The texts, and what is found about them.
class Test {
 public:
    explicit Test(const Model& model) : model_(model) {}

    SelfTest run() {
        check_files();
        guarded("golden vectors", [this] {
            golden_ = model_.bundle().golden();
            limits_ = golden_.limits(model_.preset().max_abs);
        });
        if (golden_.texts.empty()) return std::move(result_);
        check("prefill in chunks", [this](GoldenErrors& errors) {
            for (const auto& text : golden_.texts) prefill(text, errors);
        });
        check("step-by-step decode", [this](GoldenErrors& errors) {
            for (const auto& text : golden_.texts) decode(text, errors);
        });
        check("decode in a batch", [this](GoldenErrors& errors) { decode_batch(errors); });
        guarded("greedy text", [this] { check_greedy(); });
        return std::move(result_);
    }

 private:
    void passed(const std::string& line) { result_.report += "ok    " + line + "\n"; }
    void failed(Kind kind, const std::string& line) {
        result_.report += "FAIL  " + line + "\n";
        if (!result_.failure) result_.failure = Error(kind, line);
    }

    // Run a check. A record that is damaged, or a graph that fails, is a failure of the check.
    void guarded(const std::string& name, const std::function<void()>& call) {
        try {
            call();
        } catch (const Error& error) {
            if (error.kind() == Kind::memory) throw;
            failed(error.kind(), text(name, ": ", error.what()));
        }
    }

    void check_files() {
        const auto damaged = model_.bundle().verify();
        for (const auto& line : damaged) failed(Kind::bundle, line);
        if (damaged.empty()) passed(text("hashes of ", model_.bundle().manifest().files.size(), " files"));
    }

    void check(const std::string& name, const std::function<void(GoldenErrors&)>& run) {
        guarded(name, [&] {
            GoldenErrors errors(static_cast<std::size_t>(model_.config().vocab_size), limits_);
            run(errors);
            const auto line =
                text(name, ": ", errors.positions(), " positions, logits differ by ", errors.max_abs_logit(),
                     ", projections by ", errors.max_abs_projection(), " (limit ", limits_.max_abs, "), relative L2 ",
                     errors.relative_l2(), " (limit ", limits_.relative_l2, "), ", errors.right_tokens(), " of ",
                     errors.certain_tokens(), " certain tokens are right");
            const auto failure = errors.failure();
            if (failure.empty()) return passed(line);
            failed(Kind::provider, text(line, "; ", failure));
        });
    }

    void prefill(const GoldenText& text, GoldenErrors& errors) const {
        Sequences sequences(model_, 1, length_of(text), 0);
        const auto pieces = static_pieces(model_);
        const std::span<const std::int32_t> ids = text.input_ids;
        std::size_t start = 0;
        for (std::size_t number = 0; start < ids.size(); number++) {
            const std::size_t wanted = number < pieces.size() ? static_cast<std::size_t>(pieces[number]) : piece_length;
            const auto piece = ids.subspan(start, std::min(wanted, ids.size() - start));
            errors.add(text, start, sequences.prefill(0, piece, true));
            start += piece.size();
        }
    }

    void decode(const GoldenText& text, GoldenErrors& errors) const {
        Sequences sequences(model_, 1, length_of(text), 0);
        const std::span<const std::int32_t> ids = text.input_ids;
        errors.add(text, 0, sequences.prefill(0, ids.first(1)));
        for (std::size_t position = 1; position < ids.size(); position++) {
            errors.add(text, position, sequences.decode(ids.subspan(position, 1)));
        }
    }

    void decode_batch(GoldenErrors& errors) const {
        const auto& texts = golden_.texts;
        const auto longest = std::max_element(texts.begin(), texts.end(), [](const auto& a, const auto& b) {
            return a.input_ids.size() < b.input_ids.size();
        });
        Sequences sequences(model_, static_cast<std::int64_t>(texts.size()), length_of(*longest), 0);
        for (std::size_t i = 0; i < texts.size(); i++) {
            errors.add(texts[i], 0, sequences.prefill(static_cast<int>(i), std::span(texts[i].input_ids).first(1)));
        }
        std::vector<std::int32_t> ids(texts.size());
        std::vector<std::uint8_t> active(texts.size());
        for (std::size_t position = 1; position < batch_steps; position++) {
            for (std::size_t i = 0; i < texts.size(); i++) {
                active[i] = position < texts[i].input_ids.size() ? 1 : 0;
                ids[i] = active[i] != 0 ? texts[i].input_ids[position] : 0;
            }
            if (std::count(active.begin(), active.end(), 1) == 0) return;
            const auto logits = sequences.decode(ids, active);
            const std::size_t row = logits.size() / texts.size();
            for (std::size_t i = 0; i < texts.size(); i++) {
                if (active[i] != 0) errors.add(texts[i], position, logits.subspan(i * row, row));
            }
        }
    }

    // Continue the texts in one batch of prompts of different length. The end ids of the bundle have no effect.
    void check_greedy() {
        std::vector<const GoldenText*> texts;
        std::vector<Prompt> prompts;
        std::size_t longest = 0;
        std::size_t longest_prompt = 0;
        std::size_t total = 0;
        for (const auto& each : golden_.texts) {
            if (each.greedy_ids.empty()) continue;
            texts.push_back(&each);
            prompts.push_back({std::nullopt, each.input_ids});
            longest = std::max(longest, each.greedy_ids.size());
            longest_prompt = std::max(longest_prompt, each.input_ids.size());
            total += each.greedy_ids.size();
        }
        if (texts.empty()) return;
        // The KV cache of the whole context can be larger than the memory.
        const auto max_length =
            std::min(static_cast<std::int64_t>(longest_prompt + longest), model_.config().max_position_embeddings);
        Session session(model_, static_cast<std::int64_t>(texts.size()), max_length, 0);
        GenerationOptions options;
        options.max_new_tokens = static_cast<std::int64_t>(longest);
        options.sampling = SamplingParameters();
        options.stop_ids.emplace();
        options.without_text = true;
        Continuation continuation(session, prompts, options);
        while (continuation.next() != nullptr) {
        }
        std::size_t same = 0;
        for (std::size_t i = 0; i < texts.size(); i++) {
            const auto& expected = texts[i]->greedy_ids;
            const auto found = session.ids(static_cast<std::int64_t>(i)).subspan(texts[i]->input_ids.size());
            const auto count = std::min(expected.size(), found.size());
            const auto end = expected.begin() + static_cast<std::ptrdiff_t>(count);
            same +=
                static_cast<std::size_t>(std::mismatch(expected.begin(), end, found.begin()).first - expected.begin());
        }
        const auto line = text("greedy text: ", same, " of ", total, " tokens are those of the source model");
        // A provider that is less precise may choose other tokens.
        if (same == total || model_.preset().max_abs > 0) return passed(line);
        failed(Kind::provider, line);
    }

    const Model& model_;
    Golden golden_;
    GoldenLimits limits_;
    SelfTest result_;
};

}  // namespace

SelfTest selftest(const Model& model) {
    return Test(model).run();
}

}  // namespace molkv
