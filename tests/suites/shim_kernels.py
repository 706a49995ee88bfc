"""Small kernels that keep the rules of the programming model, or break one of them."""

from forebay.kernels.sources import FOLDER

TEXT = (
    (FOLDER / "common.cuh").read_text()
    + """
#line 1 "shim_kernels.cu"
KERNEL(128) sum(const float* x, double* out, int n) {
    SHARED(double, scratch, 64);
    double both[2] = {0, 0};
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        both[0] += x[i];
        both[1] += 1;
    }
    block_sum(both, scratch);
    // Every thread has it: the last one says so.
    if (threadIdx.x == blockDim.x - 1) out[2 * blockIdx.x] = both[0], out[2 * blockIdx.x + 1] = both[1];
}

KERNEL(64) indices(int* out) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int size = blockDim.x * blockDim.y * blockDim.z;
    out[block * size + thread] = 100 * threadIdx.x + 10 * threadIdx.y + threadIdx.z + 1000 * blockIdx.z;
}

KERNEL(64) shuffles(int* out) {
    const int lane = threadIdx.x & 31;
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, lane, 4);
    out[64 + threadIdx.x] = __shfl_up_sync(0xffffffffu, lane, 3);
    out[128 + threadIdx.x] = __shfl_xor_sync(0xffffffffu, lane, 5);
    out[192 + threadIdx.x] = __shfl_sync(0xffffffffu, lane, 7);
}

KERNEL(64) shuffle_from_nowhere(int* out) { out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 40); }

KERNEL(64) order(int* out, int* next) { out[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x; }

KERNEL(64) divergent(int* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1;
}

KERNEL(64) two_barriers(int* out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

KERNEL(64) early_return(int* out) {
    if (threadIdx.x == 3) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

KERNEL(64) unwritten(float* out) {
    DYNAMIC_SHARED(float, own);
    out[threadIdx.x] = own[threadIdx.x];
}

KERNEL(64) beyond(float* out, int where) {
    DYNAMIC_SHARED(float, own);
    SHARED(float, fixed, 64);
    own[threadIdx.x] = fixed[threadIdx.x] = 1;
    out[threadIdx.x] = where == 1 ? own[threadIdx.x + 1] : where == 2 ? fixed[threadIdx.x + 1] : 1;
    if (where == 3) out[threadIdx.x + 1] = 1;
}

KERNEL(64) overflow(int* out) { out[threadIdx.x] += 2147483647; }

KERNEL(64) declares(float* out, int one_more) {
    SHARED(float, all, 12288);
    all[threadIdx.x] = 1;
    out[threadIdx.x] = all[threadIdx.x];
    if (one_more) {
        SHARED(char, last, 1);
        last[0] = 1;
        out[threadIdx.x] = last[0];
    }
}

KERNEL(64) neighbours(int* out, int leave_early) {
    SHARED(int, own, 64);
    own[threadIdx.x] = 1000 * cluster_rank() + threadIdx.x;
    cluster_sync();
    const int* other = cluster_map(own, (cluster_rank() + 1) % cluster_size());
    out[blockIdx.x * blockDim.x + threadIdx.x] = other[threadIdx.x];
    if (!leave_early) cluster_sync();
}

KERNEL(64) late_reader(int* out) {
    SHARED(int, own, 64);
    own[threadIdx.x] = 1;
    const int* other = cluster_map(own, (cluster_rank() + 1) % cluster_size());
    cluster_sync();
    out[blockIdx.x * blockDim.x + threadIdx.x] = other[threadIdx.x];
}

KERNEL(64) not_shared(int* out) { out[0] = *cluster_map(out, 0); }

KERNEL(64) rounds(int* out, unsigned* barrier, int skip) {
    // Each block looks whether its neighbour has come as far as itself.
    for (int round = 1; round < 6; ++round) {
        if (threadIdx.x == 0) out[blockIdx.x] = round;
        if (!skip) grid_sync(barrier);
        if (threadIdx.x == 0 && out[(blockIdx.x + 1) % gridDim.x] < round) out[gridDim.x] = 1;
        grid_sync(barrier);
    }
}

KERNEL(64) waits(const unsigned* flag) {
    while (*static_cast<const volatile unsigned*>(flag) == 0) SPIN();
}
"""
)
