// Threads of a CUDA grid as fibres of one host thread, in an order that a seed decides.
//
// A fibre runs until it waits at a barrier, in a shuffle, or spins.  Whatever a kernel must not rely on is made to
// fail: shared memory starts as NaN, every shared array of every block is an allocation of its own (so that
// AddressSanitizer sees an overrun, and a read of a cluster neighbour that has already left), a barrier that not every
// thread of the block reaches is a fault, and so is a wait that nothing can end.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SHIM_LEAVE(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SHIM_ARRIVE(save, bottom, size) __sanitizer_finish_switch_fiber(save, bottom, size)
#define SHIM_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define SHIM_LEAVE(save, bottom, size) ((void)(save))
#define SHIM_ARRIVE(save, bottom, size) ((void)(save))
#define SHIM_UNPOISON(p, n) ((void)0)
#endif
#define SHIM_BARE [[gnu::noinline, gnu::no_sanitize_address, gnu::no_sanitize_undefined]]

struct dim3 {
    unsigned x, y, z;
};

namespace shim {

constexpr std::size_t stack_bytes = 128 * 1024;
constexpr std::size_t guard_bytes = 4096;

struct Fibre {
    void* jump[5];
    void* fake_stack;
    char* stack;
    bool started, done;
    dim3 thread;
    int block, index;
};

struct SharedArray {
    const void* key;
    std::unique_ptr<unsigned char[]> bytes;
    std::size_t size;
};

struct Barrier {
    int arrived = 0, line = 0;
    std::vector<int> waiting;
};

struct Warp {
    Barrier barrier;
    std::uint64_t lanes[2][32];
    unsigned round = 0;
};

struct Block {
    dim3 index;
    int rank, alive;
    std::vector<SharedArray> shared;
    Barrier barrier;
    std::vector<Warp> warps;
};

struct State {
    std::vector<std::unique_ptr<Fibre>> fibres;
    std::vector<Block> blocks;
    std::vector<int> ready, spinning;
    std::vector<unsigned> priority;
    Barrier cluster;
    dim3 grid, extent;
    int threads, alive, mutant = 0;
    std::uint64_t random;
    bool shuffle, greedy;
    std::uint64_t idle;
    void (*body)(void*);
    void* arguments;
    void* jump[5];
    const void* main_bottom;
    std::size_t main_size;
    char message[400];
};

inline State state;
inline Fibre* current;
inline Block* block;

inline unsigned draw() {
    state.random = state.random * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<unsigned>(state.random >> 33);
}

SHIM_BARE inline void jump_to(void** target) { __builtin_longjmp(target, 1); }

SHIM_BARE inline void transfer(void** from, void** to) {
    if (__builtin_setjmp(from) == 0) jump_to(to);
}

inline void leave(bool for_good) {
    Fibre* self = current;
    SHIM_LEAVE(for_good ? nullptr : &self->fake_stack, state.main_bottom, state.main_size);
    transfer(self->jump, state.jump);
    SHIM_ARRIVE(self->fake_stack, nullptr, nullptr);
}

// The fault ends the launch; the fibres are left as they are and made anew by the next one.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fault(const char* format, ...) {
    int used = 0;
    if (current)
        used = std::snprintf(state.message, sizeof state.message, "block (%u, %u, %u), thread %d: ", block->index.x,
                             block->index.y, block->index.z, current->index);
    va_list list;
    va_start(list, format);
    std::vsnprintf(state.message + used, sizeof state.message - used, format, list);
    va_end(list);
    leave(true);
    __builtin_unreachable();
}

inline void fibre_main() {
    SHIM_ARRIVE(nullptr, &state.main_bottom, &state.main_size);
    for (;;) {
        state.body(state.arguments);
        current->done = true;
        leave(false);
    }
}

SHIM_BARE inline void first_entry(Fibre* fibre) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fibre->stack;
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, fibre_main, 0);
    if (__builtin_setjmp(state.jump) == 0) setcontext(&context);
}

inline void resume(int number) {
    Fibre* fibre = state.fibres[number].get();
    current = fibre;
    block = &state.blocks[fibre->block];
    void* fake = nullptr;
    SHIM_LEAVE(&fake, fibre->stack, stack_bytes);
    if (fibre->started) {
        transfer(state.jump, fibre->jump);
    } else {
        fibre->started = true;
        first_entry(fibre);
    }
    SHIM_ARRIVE(fake, nullptr, nullptr);
    current = nullptr;
}

inline void wait_in(Barrier& barrier, int members, int line, const char* what) {
    if (barrier.arrived && barrier.line != line)
        fault("%s of line %d while others wait in the one of line %d", what, line, barrier.line);
    barrier.line = line;
    state.idle = 0;
    const int self = current->block * state.threads + current->index;
    if (++barrier.arrived < members) {
        barrier.waiting.push_back(self);
        leave(false);
        return;
    }
    barrier.arrived = 0;
    state.ready.insert(state.ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
    // The last one to come is not the first one to go on, else it would always be ahead.
    state.ready.push_back(self);
    leave(false);
}

inline void spin() {
    if (++state.idle > 64u * static_cast<unsigned>(state.alive)) fault("spins on a value that nobody changes");
    state.spinning.push_back(current->block * state.threads + current->index);
    leave(false);
}

inline int take_ready() {
    std::vector<int>& ready = state.ready;
    std::size_t pick = 0;
    if (state.shuffle) {
        pick = draw() % ready.size();
        // Greedy: the favoured warps run as far ahead as the barriers let them.
        for (int tries = 0; state.greedy && tries < 3; ++tries) {
            const std::size_t other = draw() % ready.size();
            if (state.priority[ready[other] / 32] > state.priority[ready[pick] / 32]) pick = other;
        }
        std::swap(ready[pick], ready.back());
    } else {
        // In order: a queue would cost a copy; the lowest number among the waiting is as good an order as any.
        for (std::size_t i = 1; i < ready.size(); ++i)
            if (ready[i] < ready[pick]) pick = i;
        std::swap(ready[pick], ready.back());
    }
    const int number = ready.back();
    ready.pop_back();
    return number;
}

inline Fibre* fresh_fibre() {
    void* memory = mmap(nullptr, stack_bytes + guard_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("shim: no memory for the stack of a fibre");
        std::abort();
    }
    mprotect(memory, guard_bytes, PROT_NONE);
    Fibre* fibre = new Fibre{};
    fibre->stack = static_cast<char*>(memory) + guard_bytes;
    return fibre;
}

inline void add_shared(Block& owner, const void* key, std::size_t size) {
    std::unique_ptr<unsigned char[]> bytes(new unsigned char[size]);
    std::memset(bytes.get(), 0xFF, size);  // NaN in every floating-point type
    owner.shared.push_back({key, std::move(bytes), size});
}

inline void describe_deadlock() {
    int at_barrier = 0, in_warp = 0;
    for (const Block& one : state.blocks) {
        at_barrier += one.barrier.arrived;
        for (const Warp& warp : one.warps) in_warp += warp.barrier.arrived;
    }
    std::snprintf(state.message, sizeof state.message,
                  "divergent barrier: of %d threads that have not left, %d wait in __syncthreads (line %d), %d in a warp "
                  "operation, %d in cluster_sync, and nobody else can arrive",
                  state.alive, at_barrier, state.blocks[0].barrier.line, in_warp, state.cluster.arrived);
}

inline void prepare_block(Block& one, int number, unsigned id, std::size_t dynamic_bytes) {
    const dim3 grid = state.grid;
    one = Block{};
    one.index = {id % grid.x, (id / grid.x) % grid.y, id / (grid.x * grid.y)};
    one.rank = number;
    one.alive = state.threads;
    one.warps.resize((state.threads + 31) / 32);
    add_shared(one, nullptr, dynamic_bytes);
    for (int t = 0; t < state.threads; ++t) {
        const dim3 extent = state.extent;
        const unsigned u = t;
        const std::size_t slot = static_cast<std::size_t>(number) * state.threads + t;
        if (slot == state.fibres.size()) state.fibres.emplace_back(fresh_fibre());
        Fibre& fibre = *state.fibres[slot];
        fibre.done = false;
        fibre.thread = {u % extent.x, (u / extent.x) % extent.y, u / (extent.x * extent.y)};
        fibre.block = number;
        fibre.index = t;
        state.ready.push_back(static_cast<int>(slot));
    }
}

// Blocks `ids` together: one block, one cluster, or the whole of a cooperative grid.
inline bool run_together(const std::vector<unsigned>& ids, std::size_t dynamic_bytes) {
    state.blocks.resize(ids.size());
    state.ready.clear();
    state.spinning.clear();
    for (std::size_t k = 0; k < ids.size(); ++k) prepare_block(state.blocks[k], static_cast<int>(k), ids[k], dynamic_bytes);
    state.alive = static_cast<int>(ids.size()) * state.threads;
    state.cluster = Barrier{};
    state.idle = 0;
    state.priority.resize(state.alive / 32 + 1);
    for (unsigned& one : state.priority) one = draw();
    while (state.alive && !state.message[0]) {
        // Who spins goes on when nobody else can.
        if (state.ready.empty()) std::swap(state.ready, state.spinning);
        if (state.ready.empty()) {
            describe_deadlock();
            break;
        }
        const int number = take_ready();
        resume(number);
        if (!state.fibres[number]->done || state.message[0]) continue;
        --state.alive;
        state.idle = 0;
        Block& left = state.blocks[state.fibres[number]->block];
        // What a block shared is gone with its last thread, also for its neighbours in the cluster.
        if (--left.alive == 0) left.shared.clear();
    }
    if (!state.message[0]) return true;
    for (auto& fibre : state.fibres) {
        SHIM_UNPOISON(fibre->stack, stack_bytes);
        fibre->started = false;
    }
    return false;
}

}  // namespace shim
