// The CUDA vocabulary of kernels/csrc, for a host compiler: included before an unmodified .cu file.
// Warp operations take full masks; every thread of the warp must take part.
#pragma once
#include <cmath>
#include <type_traits>
#include <utility>

#include "fibres.hpp"

#define HOST_SHIM 1
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define KERNEL(...) extern "C" void
#define SPIN() shim::spin()

#define threadIdx (shim::current->thread)
#define blockIdx (shim::block->index)
#define blockDim (shim::state.extent)
#define gridDim (shim::state.grid)

namespace shim {

constexpr std::size_t most_shared_bytes = 227 * 1024;
constexpr std::size_t most_static_bytes = 48 * 1024;

inline int warp_members() {
    const int first = current->index & ~31;
    return state.threads - first < 32 ? state.threads - first : 32;
}

inline void warp_barrier(int line) {
    wait_in(block->warps[current->index / 32].barrier, warp_members(), line, "a warp operation");
}

template <class T>
T exchange(T value, int source, bool keep_own, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    Warp& warp = block->warps[current->index / 32];
    const int lane = current->index & 31;
    // Two rounds of lanes: who is quick may already write the next round while others read this one.
    const unsigned round = warp.round & 1;
    std::memcpy(&warp.lanes[round][lane], &value, sizeof(T));
    if (warp.barrier.arrived + 1 == warp_members()) ++warp.round;
    warp_barrier(line);
    if (keep_own) return value;
    if (source < 0 || source >= warp_members()) fault("shuffle from lane %d, which is not there (line %d)", source, line);
    T got;
    std::memcpy(&got, &warp.lanes[round][source], sizeof(T));
    return got;
}

template <class T>
T shuffle_down(T value, int by, int line) {
    const int source = (current->index & 31) + by;
    return exchange(value, source, source > 31, line);
}

template <class T>
T shuffle_xor(T value, int with, int line) {
    return exchange(value, (current->index & 31) ^ with, false, line);
}

template <class T>
T shuffle_up(T value, int by, int line) {
    const int source = (current->index & 31) - by;
    return exchange(value, source, source < 0, line);
}

inline SharedArray& shared_of(Block& owner, const void* key, std::size_t size) {
    for (SharedArray& array : owner.shared)
        if (array.key == key) return array;
    std::size_t fixed = size, dynamic = 0;
    for (SharedArray& array : owner.shared) (array.key ? fixed : dynamic) += array.size;
    if (fixed > most_static_bytes)
        fault("%zu bytes of shared memory declared; a source may declare %zu, take more by DYNAMIC_SHARED", fixed,
              most_static_bytes);
    if (fixed + dynamic > most_shared_bytes)
        fault("%zu bytes of shared memory; a block has %zu", fixed + dynamic, most_shared_bytes);
    add_shared(owner, key, size);
    return owner.shared.back();
}

template <class T>
T* static_shared(const void* key, std::size_t count) {
    return reinterpret_cast<T*>(shared_of(*block, key, count * sizeof(T)).bytes.get());
}

template <class T>
T* map_to(T* pointer, unsigned rank) {
    if (rank >= state.blocks.size()) fault("block %u of a cluster of %zu", rank, state.blocks.size());
    Block& other = state.blocks[rank];
    if (!other.alive) fault("the shared memory of block %u of the cluster, which has left", rank);
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    for (const SharedArray& array : block->shared) {
        const auto start = reinterpret_cast<std::uintptr_t>(array.bytes.get());
        if (address >= start && address <= start + array.size)
            return reinterpret_cast<T*>(shared_of(other, array.key, array.size).bytes.get() + (address - start));
    }
    fault("cluster_map of a pointer that is not into shared memory");
}

// --- launches ---------------------------------------------------------------------------------------------------

template <class T>
struct Same {
    using type = T;
};

template <class T>
struct Code {
    using Plain = std::remove_cv_t<T>;
    static constexpr char value = std::is_same_v<Plain, float>            ? 'f'
                                  : std::is_same_v<Plain, double>         ? 'd'
                                  : std::is_same_v<Plain, int>            ? 'i'
                                  : std::is_same_v<Plain, unsigned>       ? 'I'
                                  : std::is_same_v<Plain, long long>      ? 'q'
                                  : std::is_same_v<Plain, unsigned short> ? 'H'
                                  : std::is_same_v<Plain, unsigned char>  ? 'B'
                                                                          : '?';
};

// "Pf" for const float*, "i" for int: checked against what the caller passes.
template <class... A>
const char* signature(void (*)(A...)) {
    static char text[3 * sizeof...(A) + 1];
    int used = 0;
    ((std::is_pointer_v<A> ? void(text[used++] = 'P') : void(), text[used++] = Code<std::remove_pointer_t<A>>::value,
      text[used++] = ' '),
     ...);
    return text;
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(values[I])...);
}

template <class... A>
int launch(void (*kernel)(A...), const unsigned* shape, std::size_t dynamic_bytes, int cluster, int cooperative,
           unsigned seed, void** values) {
    struct Call {
        void (*kernel)(A...);
        void** values;
    } one{kernel, values};
    state.body = [](void* p) {
        Call& that = *static_cast<Call*>(p);
        call(that.kernel, that.values, std::index_sequence_for<A...>{});
    };
    state.arguments = &one;
    state.grid = {shape[0], shape[1], shape[2]};
    state.extent = {shape[3], shape[4], shape[5]};
    state.threads = static_cast<int>(shape[3] * shape[4] * shape[5]);
    state.random = seed * 2654435761ull + 88172645463325252ull;
    state.shuffle = seed != 0;
    state.greedy = seed % 2 == 0;
    state.message[0] = 0;
    const unsigned blocks = shape[0] * shape[1] * shape[2], together = cooperative ? blocks : cluster;
    std::vector<unsigned> order(blocks / together);
    for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
    if (state.shuffle)
        for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
    std::vector<unsigned> ids(together);
    for (unsigned first : order) {
        for (unsigned k = 0; k < together; ++k) ids[k] = first * together + k;
        if (!run_together(ids, dynamic_bytes)) return 1;
    }
    return 0;
}

}  // namespace shim

#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(shim::block->shared[0].bytes.get())
#define SHARED(T, name, count)     \
    static const char name##_key = 0; \
    T* const name = shim::static_shared<T>(&name##_key, count)

#define __syncthreads() shim::wait_in(shim::block->barrier, shim::state.threads, __LINE__, "__syncthreads")
#define __syncwarp(...) shim::warp_barrier(__LINE__)
#define __shfl_down_sync(mask, value, by) shim::shuffle_down(value, by, __LINE__)
#define __shfl_up_sync(mask, value, by) shim::shuffle_up(value, by, __LINE__)
#define __shfl_xor_sync(mask, value, with) shim::shuffle_xor(value, with, __LINE__)
#define __shfl_sync(mask, value, source) shim::exchange(value, source, false, __LINE__)
#define cluster_sync() \
    shim::wait_in(shim::state.cluster, shim::state.threads * int(shim::state.blocks.size()), __LINE__, "cluster_sync")

inline unsigned cluster_rank() { return static_cast<unsigned>(shim::block->rank); }
inline unsigned cluster_size() { return static_cast<unsigned>(shim::state.blocks.size()); }
template <class T>
T* cluster_map(T* pointer, unsigned rank) {
    return shim::map_to(pointer, rank);
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T atomicAdd(T* p, typename shim::Same<T>::type value) {
    shim::state.idle = 0;
    return std::exchange(*p, *p + value);
}
template <class T>
T atomicMax(T* p, typename shim::Same<T>::type value) {
    return std::exchange(*p, *p > value ? *p : value);
}
template <class T>
T atomicOr(T* p, typename shim::Same<T>::type value) {
    return std::exchange(*p, *p | value);
}
template <class T>
T atomicExch(T* p, typename shim::Same<T>::type value) {
    shim::state.idle = 0;
    return std::exchange(*p, value);
}
template <class A, class B>
constexpr auto min(A a, B b) {
    return b < a ? b : a;
}
template <class A, class B>
constexpr auto max(A a, B b) {
    return a < b ? b : a;
}
using std::isfinite;

#define SHIM_PUBLIC extern "C" __attribute__((visibility("default")))
#define SHIM_EXPORT(kernel)                                                                                           \
    SHIM_PUBLIC const char* shim_signature_##kernel() { return shim::signature(&kernel); }                            \
    SHIM_PUBLIC int shim_launch_##kernel(const unsigned* shape, unsigned long long bytes, int cluster,                \
                                         int cooperative, unsigned seed, void** values) {                             \
        return shim::launch(&kernel, shape, bytes, cluster, cooperative, seed, values);                               \
    }
SHIM_PUBLIC const char* shim_message() { return shim::state.message; }
SHIM_PUBLIC void shim_choose_mutant(int number) { shim::state.mutant = number; }
