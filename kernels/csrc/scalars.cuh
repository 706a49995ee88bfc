// The numbers that steer the iteration of every system, in device memory: no kernel waits for the host.
// Reductions have two stages: blocks write partial sums, and the last block of a system to finish adds them up in
// one fixed order and takes the decision.  Sums do not depend on the schedule.
#include "common.cuh"

enum Scalar { RHO, STEP, TURN, NORM2, TARGET, SCALARS };  // <r, z>, alpha, beta, <r, r>, where <r, r> may stop
enum Flag { ACTIVE, ITERATIONS, OUTCOME, MOST_ITERATIONS, FLAGS };
enum Outcome { CONVERGED = 0, OUT_OF_ITERATIONS = 1, DIVERGED = 2, NONFINITE = 4 };  // kernels/records.py

// The sum of N values over all blocks (x, y) of `system`: true in the last block to come, whose threads all have it.
template <int N>
__device__ __forceinline__ bool system_sum(double (&value)[N], double* partial, unsigned* tickets, int system) {
    SHARED(double, scratch, 32 * N);
    SHARED(unsigned, ticket, 1);
    const unsigned blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
    partial += static_cast<long long>(system) * blocks * N;
    block_sum(value, scratch);
    if (threadIdx.x == 0) {
#pragma unroll
        for (int k = 0; k < N; ++k) partial[block * N + k] = value[k];
        __threadfence();
        ticket[0] = atomicAdd(&tickets[system], 1u);
    }
    __syncthreads();
    if (ticket[0] != blocks - 1) return false;
    __threadfence();
#pragma unroll
    for (int k = 0; k < N; ++k) value[k] = 0;
    const volatile double* written = partial;
    for (unsigned b = threadIdx.x; b < blocks; b += blockDim.x)
#pragma unroll
        for (int k = 0; k < N; ++k) value[k] += written[b * N + k];
    block_sum(value, scratch);
    if (threadIdx.x == 0) tickets[system] = 0;
    return true;
}

__device__ __forceinline__ void stop(int* flags, int outcome) {
    flags[ACTIVE] = 0;
    flags[OUTCOME] = outcome;
}

// alpha = <r, z> / <p, A p>
__device__ __forceinline__ void choose_step(double curvature, double* scalars, int* flags) {
    const double step = scalars[RHO] / curvature;
    scalars[STEP] = curvature > 0 && isfinite(step) ? step : 0;
    if (!isfinite(curvature)) stop(flags, NONFINITE);
    else if (!(curvature > 0) || !isfinite(step)) stop(flags, DIVERGED);
}

__device__ __forceinline__ void test_convergence(double norm2, double* scalars, int* flags) {
    scalars[NORM2] = norm2;
    const int iterations = ++flags[ITERATIONS];
    if (!isfinite(norm2)) stop(flags, NONFINITE);
    else if (norm2 <= scalars[TARGET]) stop(flags, CONVERGED);
    else if (iterations >= flags[MOST_ITERATIONS]) stop(flags, OUT_OF_ITERATIONS);
}

// beta = <r, z> / <r, z>_old; rho = 0 says that there is no old one.
__device__ __forceinline__ void choose_turn(double rho, double* scalars, int* flags) {
    scalars[TURN] = scalars[RHO] > 0 ? rho / scalars[RHO] : 0;
    scalars[RHO] = rho;
    if (!isfinite(rho)) stop(flags, NONFINITE);
    else if (!(rho > 0)) stop(flags, DIVERGED);
}
