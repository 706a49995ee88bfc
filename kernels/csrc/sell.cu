// Preconditioned conjugate gradients for one sparse matrix and NRHS right-hand sides, smoothed-aggregation cycle:
// one kernel a pass over a matrix.  grid (rows / BLOCK), blocks of BLOCK threads, a row a thread.
//
//   spmm_dot      q = A p, <p, q>                        -> alpha
//   update_dot    x += alpha p, r -= alpha q, <r, r>     -> converged?
//   residual      t = r - A m r                          once a level, then restriction  r = R t  of the next one
//   coarsest_dot  z = A^-1 r
//   prolong       y = m r + P z                          once a level
//   post_dot      z = y + m (r - A y), <r, z>            `finest`: -> beta
//   direction     p = z + beta p
#include "sell.cuh"

// This thread's row, or -1.
__device__ __forceinline__ int own_row(int n) {
    const int row = blockIdx.x * BLOCK + threadIdx.x;
    return row < n ? row : -1;
}

KERNEL(BLOCK) spmm_dot(const int* __restrict__ slices, const int* __restrict__ columns, const real* __restrict__ values,
                       const real* __restrict__ p, real* __restrict__ q, double* partial, unsigned* tickets, double* scalars,
                       int* flags, int n) {
    if (!any_active(flags)) return;
    const int row = own_row(n);
    double sum[NRHS] = {};
    if (row >= 0) apply_row(Rows<real>{slices, columns, values}, p, q, row, sum);
    if (system_sum(sum, partial, tickets, 0) && threadIdx.x == 0) decide(choose_step, sum, scalars, flags);
}

KERNEL(BLOCK) update_dot(const real* __restrict__ p, const real* __restrict__ q, real* __restrict__ x, real* __restrict__ r,
                         soft* soft_r, double* partial, unsigned* tickets, double* scalars, int* flags, int n) {
    if (!any_active(flags)) return;
    double step[NRHS], sum[NRHS] = {};
#pragma unroll
    for (int k = 0; k < NRHS; ++k) step[k] = flags[FLAGS * k + ACTIVE] ? scalars[SCALARS * k + STEP] : 0;
    const int row = own_row(n);
    if (row >= 0) update_row(step, p, q, x, r, soft_r, row, sum);
    if (system_sum(sum, partial, tickets, 0) && threadIdx.x == 0) decide(test_convergence, sum, scalars, flags);
}

KERNEL(BLOCK) residual(const int* __restrict__ slices, const int* __restrict__ columns, const value_t* __restrict__ values,
                       const soft* __restrict__ diagonal, const soft* __restrict__ smoother, const soft* __restrict__ spread,
                       const soft* __restrict__ r, soft* __restrict__ t, const int* flags, int n) {
    const int row = own_row(n);
    if (row < 0 || !any_active(flags)) return;
    residual_row(SoftMatrix{{slices, columns, values}, diagonal, smoother, spread}, r, t, row);
}

KERNEL(BLOCK) restriction(const int* __restrict__ slices, const int* __restrict__ columns, const value_t* __restrict__ values,
                          const soft* __restrict__ t, soft* __restrict__ coarse_r, const int* flags, int n) {
    const int row = own_row(n);
    if (row < 0 || !any_active(flags)) return;
    restrict_row(Rows<value_t>{slices, columns, values}, t, coarse_r, row);
}

KERNEL(BLOCK) prolong(const int* __restrict__ slices, const int* __restrict__ columns, const value_t* __restrict__ values,
                      const soft* __restrict__ smoother, const soft* __restrict__ spread, const soft* __restrict__ r,
                      const soft* __restrict__ coarse_z, soft* __restrict__ y, const int* flags, int n) {
    const int row = own_row(n);
    if (row < 0 || !any_active(flags)) return;
    const SoftMatrix level{{}, nullptr, smoother, spread};
    prolong_row(level, Rows<value_t>{slices, columns, values}, r, coarse_z, y, row);
}

KERNEL(BLOCK) post_dot(const int* __restrict__ slices, const int* __restrict__ columns, const value_t* __restrict__ values,
                       const soft* __restrict__ diagonal, const soft* __restrict__ smoother, const soft* __restrict__ r,
                       const soft* __restrict__ y, soft* __restrict__ z, double* partial, unsigned* tickets, double* scalars,
                       int* flags, int n, int finest) {
    if (!any_active(flags)) return;
    const int row = own_row(n);
    double sum[NRHS] = {};
    if (row >= 0) post_row(SoftMatrix{{slices, columns, values}, diagonal, smoother, nullptr}, r, y, z, row, sum);
    if (finest && system_sum(sum, partial, tickets, 0) && threadIdx.x == 0) decide(choose_turn, sum, scalars, flags);
}

KERNEL(BLOCK) coarsest_dot(const soft* __restrict__ inverse, const soft* __restrict__ r, soft* __restrict__ z, double* partial,
                           unsigned* tickets, double* scalars, int* flags, int n, int finest) {
    if (!any_active(flags)) return;
    const int row = own_row(n);
    double sum[NRHS] = {};
    if (row >= 0) dense_row(inverse, r, z, n, row, sum);
    if (finest && system_sum(sum, partial, tickets, 0) && threadIdx.x == 0) decide(choose_turn, sum, scalars, flags);
}

KERNEL(BLOCK) direction(const soft* __restrict__ z, real* __restrict__ p, const double* scalars, const int* flags, int n) {
    const int row = own_row(n);
    if (row < 0 || !any_active(flags)) return;
    double turn[NRHS];
#pragma unroll
    for (int k = 0; k < NRHS; ++k) turn[k] = scalars[SCALARS * k + TURN];
    turn_row(turn, z, p, row);
}
