// The whole solve of csrc/sell.cu in one cooperative kernel, for matrices so small that launches would cost more than
// the passes: all blocks run at the same time and wait for each other between passes.
//
// `table` has ENTRIES addresses a level, `rows` its rows.  Nothing that changes within the kernel is __restrict__: such
// loads could take a path that does not see what other blocks wrote.
#include "sell.cuh"

enum Entry {
    A_SLICES, A_COLUMNS, A_VALUES, DIAGONAL, SMOOTHER, SPREAD, P_SLICES, P_COLUMNS, P_VALUES,
    R_SLICES, R_COLUMNS, R_VALUES, RIGHT, RESIDUAL, ITERATE, RESULT, INVERSE, ENTRIES
};

template <class T>
__device__ __forceinline__ T* address(const long long* level, int entry) {
    return reinterpret_cast<T*>(level[entry]);
}

__device__ __forceinline__ Rows<value_t> rows_at(const long long* level, int first) {
    return {address<const int>(level, first), address<const int>(level, first + 1), address<const value_t>(level, first + 2)};
}

__device__ __forceinline__ SoftMatrix matrix_at(const long long* level) {
    return {rows_at(level, A_SLICES), address<const soft>(level, DIAGONAL), address<const soft>(level, SMOOTHER),
            address<const soft>(level, SPREAD)};
}

// Sums over the grid, in every thread.  Every block adds up the partial sums by itself, in one order; two buffers in
// turn, so that who is quick does not overwrite what others still read.
__device__ __forceinline__ void grid_sum(double (&value)[NRHS], double* partial, int& turn, unsigned* barrier) {
    SHARED(double, scratch, 32 * NRHS);
    double* const own = partial + (turn ^= 1) * (gridDim.x * NRHS);
    block_sum(value, scratch);
    if (threadIdx.x == 0)
        for (int k = 0; k < NRHS; ++k) own[blockIdx.x * NRHS + k] = value[k];
    grid_sync(barrier);
#pragma unroll
    for (int k = 0; k < NRHS; ++k) value[k] = 0;
    const volatile double* written = own;
    for (unsigned b = threadIdx.x; b < gridDim.x; b += BLOCK)
#pragma unroll
        for (int k = 0; k < NRHS; ++k) value[k] += written[b * NRHS + k];
    // The caller's next barrier frees the scratch.
    block_sum(value, scratch);
}

#define FOR_ROWS(row, n) for (int row = blockIdx.x * BLOCK + threadIdx.x; row < (n); row += gridDim.x * BLOCK)

// One V-cycle; r is RIGHT of the finest level, z its RESULT, and <r, z> is returned.
__device__ __forceinline__ void cycle(const long long* table, const int* rows, int levels, double (&dots)[NRHS],
                                      unsigned* barrier) {
    for (int l = 0; l + 1 < levels; ++l) {
        const long long* const level = table + l * ENTRIES;
        FOR_ROWS(row, rows[l]) residual_row(matrix_at(level), address<soft>(level, RIGHT), address<soft>(level, RESIDUAL), row);
        grid_sync(barrier);
        FOR_ROWS(row, rows[l + 1])
            restrict_row(rows_at(level, R_SLICES), address<soft>(level, RESIDUAL), address<soft>(level + ENTRIES, RIGHT), row);
        grid_sync(barrier);
    }
    const long long* const last = table + (levels - 1) * ENTRIES;
    FOR_ROWS(row, rows[levels - 1])
        dense_row(address<soft>(last, INVERSE), address<soft>(last, RIGHT), address<soft>(last, RESULT), rows[levels - 1], row, dots);
    for (int l = levels - 2; l >= 0; --l) {
        const long long* const level = table + l * ENTRIES;
        grid_sync(barrier);
        FOR_ROWS(row, rows[l])
            prolong_row(matrix_at(level), rows_at(level, P_SLICES), address<soft>(level, RIGHT),
                        address<soft>(level + ENTRIES, RESULT), address<soft>(level, ITERATE), row);
        grid_sync(barrier);
#pragma unroll
        for (int k = 0; k < NRHS; ++k) dots[k] = 0;
        FOR_ROWS(row, rows[l])
            post_row(matrix_at(level), address<soft>(level, RIGHT), address<soft>(level, ITERATE), address<soft>(level, RESULT),
                     row, dots);
    }
}

// r, soft_r (RIGHT of level 0) and TARGET are given, x = 0, p = 0.  `partial` holds 2 NRHS gridDim.x sums.
KERNEL(BLOCK) solve_small(const int* slices, const int* columns, const real* values, const long long* table, const int* rows,
                          int levels, real* x, real* r, real* p, real* q, double* partial, unsigned* barrier, double* scalars,
                          int* flags) {
    SHARED(double, state, SCALARS * NRHS);
    SHARED(int, marks, FLAGS * NRHS);
    const Rows<real> a{slices, columns, values};
    soft* const soft_r = address<soft>(table, RIGHT);
    const soft* const z = address<soft>(table, RESULT);
    const int n = rows[0];
    int turn = 0;
    // Every block decides for itself, from the same sums.
    for (int i = threadIdx.x; i < SCALARS * NRHS; i += BLOCK) state[i] = scalars[i];
    for (int i = threadIdx.x; i < FLAGS * NRHS; i += BLOCK) marks[i] = flags[i];
    __syncthreads();
    const auto settle = [&](const auto& decision, double (&sum)[NRHS]) {
        grid_sum(sum, partial, turn, barrier);
        if (threadIdx.x == 0) decide(decision, sum, state, marks);
        __syncthreads();
    };
    while (any_active(marks)) {
        double sum[NRHS] = {}, factor[NRHS];
        cycle(table, rows, levels, sum, barrier);
        settle(choose_turn, sum);
#pragma unroll
        for (int k = 0; k < NRHS; ++k) {
            factor[k] = state[SCALARS * k + TURN];
            sum[k] = 0;
        }
        FOR_ROWS(row, n) turn_row(factor, z, p, row);
        grid_sync(barrier);
        FOR_ROWS(row, n) apply_row(a, p, q, row, sum);
        settle(choose_step, sum);
#pragma unroll
        for (int k = 0; k < NRHS; ++k) {
            factor[k] = marks[FLAGS * k + ACTIVE] ? state[SCALARS * k + STEP] : 0;
            sum[k] = 0;
        }
        FOR_ROWS(row, n) update_row(factor, p, q, x, r, soft_r, row, sum);
        settle(test_convergence, sum);
    }
    if (blockIdx.x != 0) return;
    for (int i = threadIdx.x; i < SCALARS * NRHS; i += BLOCK) scalars[i] = state[i];
    for (int i = threadIdx.x; i < FLAGS * NRHS; i += BLOCK) flags[i] = marks[i];
}
