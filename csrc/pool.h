// Threads for all native ops: torch's own team where it can be reached (pool.cpp says why), else one small pool.
//
// Work is cut into chunks of a size that the op fixes, and workers take the next chunk from a counter: which thread computes a chunk
// changes with every call, what the chunk is never does. Workers are started when first needed, park on a condition variable, and are
// forgotten in a forked child, which starts its own. torch's team ends with a barrier that waits for every member, and its threads spin for
// milliseconds after it (OMP_WAIT_POLICY=passive: they park at once, and each call wakes them, some 50 microseconds). So an op asks for
// threads where its work is longer than that, and for one region a call, not one a step. A call that finds the pool busy (another Python
// thread) runs on its own thread.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace codeword {

// Results may not depend on whether the calling program flushes subnormals: every thread computes with the default mode,
// and so does what a binding itself computes: one stands at the start of each.
struct DefaultFloatMode {
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    DefaultFloatMode() { _mm_setcsr(0x1f80); }
    ~DefaultFloatMode() { _mm_setcsr(saved); }
#endif
};

// task(context, chunk, slot): slot < min(num_threads, chunks) is distinct among tasks that run at the same time, for scratch memory. It must not throw.
using Task = void (*)(void* context, int64_t chunk, int slot);

void run_chunks(int64_t chunks, int num_threads, Task task, void* context) noexcept;
void watch_forks() noexcept;  // once, when the module is loaded
int workers() noexcept;  // threads of the pool started so far in this process

// The same for a callable body(chunk, slot).
template <class Body>
void parallel(int64_t chunks, int num_threads, Body&& body) noexcept {
    run_chunks(chunks, num_threads, [](void* context, int64_t chunk, int slot) { (*static_cast<Body*>(context))(chunk, slot); }, &body);
}

}  // namespace codeword
