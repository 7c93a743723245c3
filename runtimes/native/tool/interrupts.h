// SIGINT, SIGTERM and SIGHUP: the first one cancels the running call of a session.
#pragma once

#include <csignal>
#include <mutex>
#include <thread>

#include "molkv.h"

namespace tool {

// A thread that waits for the signals. Create it before other threads, so that they do not get the signals. If there is
// no session to cancel, or at a second signal, the process ends at once with code 130.
class Interrupts {
 public:
    Interrupts();
    Interrupts(const Interrupts&) = delete;
    Interrupts& operator=(const Interrupts&) = delete;
    ~Interrupts();

    // The session to cancel; NULL: none.
    void watch(molkv_session* session);

 private:
    void wait();

    sigset_t signals_;
    std::mutex mutex_;
    molkv_session* session_ = nullptr;
    bool interrupted_ = false;
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace tool
