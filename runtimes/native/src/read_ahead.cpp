// The thread that reads records ahead.
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "store.h"

namespace molkv {

struct ReadAhead::Worker {
    const Store& store;
    std::mutex mutex;
    std::condition_variable changed;
    std::span<const std::int32_t> ids;
    std::span<std::byte> records;
    std::exception_ptr error;
    bool reading = false;
    bool ended = false;
    std::thread thread;

    explicit Worker(const Store& source) : store(source), thread([this] { work(); }) {}

    void work() {
        std::unique_lock lock(mutex);
        while (true) {
            changed.wait(lock, [this] { return reading || ended; });
            if (!reading) return;
            lock.unlock();
            std::exception_ptr found;
            try {
                store.gather(ids, records);
            } catch (...) {
                found = std::current_exception();
            }
            lock.lock();
            error = found;
            reading = false;
            changed.notify_all();
        }
    }

    void wait(std::unique_lock<std::mutex>& lock) {
        changed.wait(lock, [this] { return !reading; });
    }
};

ReadAhead::ReadAhead(const Store& store) : worker_(std::make_unique<Worker>(store)) {}

ReadAhead::~ReadAhead() {
    {
        const std::lock_guard lock(worker_->mutex);
        worker_->ended = true;
    }
    worker_->changed.notify_all();
    worker_->thread.join();
}

void ReadAhead::start(std::span<const std::int32_t> ids, std::span<std::byte> records) {
    std::unique_lock lock(worker_->mutex);
    worker_->wait(lock);
    worker_->ids = ids;
    worker_->records = records;
    worker_->error = nullptr;
    worker_->reading = true;
    worker_->changed.notify_all();
}

void ReadAhead::wait() {
    std::unique_lock lock(worker_->mutex);
    worker_->wait(lock);
    if (worker_->error) std::rethrow_exception(std::exchange(worker_->error, nullptr));
}

}  // namespace molkv
