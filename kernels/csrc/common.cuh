// What every kernel shares.  No headers: NVRTC compiles it as it stands, a host compiler after kernels/host/shim.hpp.
//
//   KERNEL(threads) name(...)       an extern "C" kernel for blocks of at most `threads` threads; KERNEL(threads, blocks)
//                                   says besides how many blocks a multiprocessor must hold, which bounds registers
//   DYNAMIC_SHARED(T, name)         T* name: the shared memory whose size the launch gives
//   SHARED(T, name, count)          T* name or T name[count]: shared memory of a size known to the compiler
//   cluster_rank/size/sync/map      thread-block clusters; below sm_90 a cluster is one block
#ifndef HOST_SHIM
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define DYNAMIC_SHARED(T, name)                                    \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    T* const name = reinterpret_cast<T*>(dynamic_shared)
#define SHARED(T, name, count) __shared__ T name[count]
#define SPIN() ((void)0)

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// A barrier of all threads of the cluster; what was written before it is seen after it.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same shared array in block `rank` of the cluster.
template <class T>
__device__ __forceinline__ T* cluster_map(T* pointer, unsigned rank) {
    T* mapped;
    asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
    return mapped;
}
#else
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ unsigned cluster_size() { return 1; }
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
template <class T>
__device__ __forceinline__ T* cluster_map(T* pointer, unsigned) {
    return pointer;
}
#endif
#endif

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (int by = 16; by > 0; by >>= 1) value += __shfl_xor_sync(0xffffffffu, value, by);
    return value;
}

// Sums of N values over the block, in every thread, in one order whatever the schedule.  Blocks of full warps only.
// `scratch` holds 32 N values of the caller's shared memory, which are free again after the next barrier.
template <int N>
__device__ __forceinline__ void block_sum(double (&value)[N], double* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int k = 0; k < N; ++k) {
        value[k] = warp_sum(value[k]);
        if (lane == 0) scratch[32 * k + warp] = value[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) value[k] = warp_sum(lane < warps ? scratch[32 * k + lane] : 0.0);
}

// A barrier of all blocks of a cooperative launch.  `barrier` is zero when the launch begins.
__device__ __forceinline__ void grid_sync(unsigned* barrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
        __threadfence();
        const unsigned last = (atomicAdd(barrier, 1u) / blocks + 1u) * blocks;
        while (*static_cast<volatile unsigned*>(barrier) < last) SPIN();
        __threadfence();
    }
    __syncthreads();
}
