// The thread that waits for signals. Unlike a signal handler, it can lock, so the session is not freed meanwhile.
#include "interrupts.h"

#include <pthread.h>
#include <unistd.h>

namespace tool {

constexpr int interrupted_code = 130;

Interrupts::Interrupts() : signals_() {
    sigemptyset(&signals_);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals_, number);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    thread_ = std::thread([this] { wait(); });
}

Interrupts::~Interrupts() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    // The thread waits for signals, and this is one. NOLINTNEXTLINE(bugprone-bad-signal-to-kill-thread)
    pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
}

void Interrupts::watch(molkv_session* session) {
    const std::lock_guard lock(mutex_);
    session_ = session;
}

void Interrupts::wait() {
    while (true) {
        int number = 0;
        sigwait(&signals_, &number);
        const std::lock_guard lock(mutex_);
        if (stopping_) return;
        if (session_ == nullptr || interrupted_) _exit(interrupted_code);
        interrupted_ = true;
        molkv_session_cancel(session_);
    }
}

}  // namespace tool
