#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#endif

namespace codeword {
namespace {

struct Job {
    Task task;
    void* context;
    int64_t chunks;
    std::atomic<int64_t> next{0};
    std::atomic<int> slots{0};  // given out, where threads have no places of their own

    void work(int slot) {
        for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) task(context, chunk, slot);
    }
};

class Pool {
public:
    // Runs the job on the caller and at most helpers workers. False where another call holds the pool.
    bool run(Job& job, int helpers) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn) return false;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (started_ < helpers && start()) ++started_;
            job_ = &job;
            places_ = helpers < started_ ? helpers : static_cast<int>(started_);
            slot_ = 0;
        }
        if (helpers == 1) wake_.notify_one();
        else wake_.notify_all();
        job.work(0);
        // All chunks are taken. Whoever has not come by now finds no place any more: a worker that the system keeps waiting for a
        // processor (other libraries' threads spin on theirs for a while) delays nobody. Only chunks in work are waited for.
        std::unique_lock<std::mutex> lock(mutex_);
        places_ = 0;
        job_ = nullptr;
        done_.wait(lock, [this] { return working_ == 0; });
        return true;
    }

    int started() const { return started_; }

private:
    bool start() {
#ifndef _WIN32
        sigset_t all, before;  // signals are for the program's own threads
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
        bool ok = true;
        try {
            std::thread([this] { loop(); }).detach();
        } catch (const std::system_error&) {
            ok = false;  // no more threads to be had: fewer do the work
        }
#ifndef _WIN32
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
        return ok;
    }

    void loop() {
        [[maybe_unused]] DefaultFloatMode mode;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return places_ > 0; });
            --places_;
            ++working_;
            Job* job = job_;
            int slot = ++slot_;
            lock.unlock();
            job->work(slot);
            lock.lock();
            if (--working_ == 0 && !job_) done_.notify_one();
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    int places_ = 0, slot_ = 0, working_ = 0;  // workers that may still come, slots given out, workers inside the job
    std::atomic<int> started_{0};
};

std::atomic<bool> forked{false};

// torch's own team of threads, where torch uses OpenMP: the entry point that GCC compiles a parallel region to (LLVM's and Intel's
// runtimes have it too), found in what the process has loaded. torch's threads spin for milliseconds after each of its operations;
// work that comes to them starts at once, while threads beside them would get half a processor. Not in a forked child: there the
// runtime still believes in threads that exist no longer.
typedef void (*Team)(void (*body)(void*), void* context, unsigned num_threads, unsigned flags);

Team torch_team() {
#ifdef _WIN32
    return nullptr;
#else
    static const Team found = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return forked.load(std::memory_order_relaxed) ? nullptr : found;
#endif
}

void join(void* context) {
    [[maybe_unused]] DefaultFloatMode mode;
    Job* job = static_cast<Job*>(context);
    // A slot goes only to who has a chunk: there are no more of them than chunks, as callers' scratch memory expects.
    int64_t chunk = job->next.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= job->chunks) return;
    int slot = job->slots.fetch_add(1, std::memory_order_relaxed);
    job->task(job->context, chunk, slot);
    job->work(slot);
}

// Never destroyed: parked workers may outlive static destructors. A forked child drops the parent's pool, whose threads it has not.
std::atomic<Pool*> pool{nullptr};

Pool* get_pool() {
    Pool* have = pool.load(std::memory_order_acquire);
    if (have) return have;
    Pool* fresh = new (std::nothrow) Pool;
    if (fresh && !pool.compare_exchange_strong(have, fresh)) {
        delete fresh;  // another thread was first; nobody has seen this one
        return have;
    }
    return fresh;
}

}  // namespace

void run_chunks(int64_t chunks, int num_threads, Task task, void* context) noexcept {
    if (chunks <= 0) return;
    [[maybe_unused]] DefaultFloatMode mode;
    Job job{task, context, chunks};
    int64_t helpers = (num_threads < chunks ? num_threads : chunks) - 1;
    if (helpers > 0) {
        if (Team team = torch_team()) {
            static std::atomic<bool> busy{false};  // by a call of another thread: then this one works alone, as with the pool
            if (busy.exchange(true, std::memory_order_acquire)) return job.work(0);
            // All threads are asked for even where chunks are fewer: a team that changes its size is made anew.
            team(join, &job, static_cast<unsigned>(num_threads), 0);
            busy.store(false, std::memory_order_release);
            return;
        }
        Pool* have = get_pool();
        if (have && have->run(job, static_cast<int>(helpers))) return;
    }
    job.work(0);
}

void watch_forks() noexcept {
#ifndef _WIN32
    pthread_atfork(nullptr, nullptr, [] {
        pool.store(nullptr, std::memory_order_release);
        forked.store(true, std::memory_order_relaxed);
    });
#endif
}

int workers() noexcept {
    Pool* have = pool.load(std::memory_order_acquire);
    return have ? have->started() : 0;
}

}  // namespace codeword
