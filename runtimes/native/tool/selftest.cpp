// `molkv selftest`.
#include "commands.h"
#include "errors.h"
#include "opened.h"
#include "output.h"

namespace tool {

namespace {

int run(const Arguments& arguments, Interrupts& /*interrupts*/) {
    const auto model = open_model(arguments);
    const char* report = nullptr;
    const auto status = molkv_selftest(model.get(), &report);
    if (report != nullptr) print(report);
    check(status);
    return 0;
}

}  // namespace

Command selftest_command() {
    return {{"selftest", "Compare a bundle with its hashes and its golden vectors on this device.",
             "  molkv selftest stdlib-mini.bundle\n"
             "  molkv selftest my.bundle --provider xnnpack --threads 4\n",
             model_options()},
            run};
}

}  // namespace tool
