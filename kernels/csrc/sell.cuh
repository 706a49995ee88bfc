// Rows of sparse matrices in SELL-32 (kernels/sell.py): slices of 32 rows, one row a lane, entries of a slice stored
// entry by entry, so that a warp reads 32 consecutive ones.  Vectors are row-major (n, NRHS).
//
//   REAL    float | double     vectors and matrix of the conjugate gradients
//   CYCLE   float | double     vectors of the preconditioner
//   VALUE   16 | 32 | 64       bits of the preconditioner's entries: bfloat16, float, double
//   NRHS    right-hand sides at once
#include "scalars.cuh"
#ifndef REAL
#define REAL double
#endif
#ifndef CYCLE
#define CYCLE float
#endif
#ifndef VALUE
#define VALUE 32
#endif
#ifndef NRHS
#define NRHS 1
#endif
#ifndef BLOCK
#define BLOCK 256
#endif

typedef REAL real;
typedef CYCLE soft;
#if VALUE == 16
typedef unsigned short value_t;
#elif VALUE == 32
typedef float value_t;
#else
typedef double value_t;
#endif

__device__ __forceinline__ double entry(double stored) { return stored; }
__device__ __forceinline__ float entry(float stored) { return stored; }
// A bfloat16 is the upper half of a float.
__device__ __forceinline__ float entry(unsigned short stored) {
    union {
        unsigned bits;
        float number;
    } both;
    both.bits = static_cast<unsigned>(stored) << 16;
    return both.number;
}

template <class V>
struct Rows {
    const int* slices;   // where each slice begins, in entries
    const int* columns;
    const V* values;
};

// sum_k += sign * Σ_j a_ij x_jk, with x_jk = x(j)[k] times weight(j)
template <class V, class X, class W, class S>
__device__ __forceinline__ void add_row(const Rows<V>& a, int row, const X* x, const W& weight, S sign, S (&sum)[NRHS]) {
    const int slice = row >> 5, end = a.slices[slice + 1];
    for (int e = a.slices[slice] + (row & 31); e < end; e += 32) {
        const int column = a.columns[e];
        const S factor = sign * static_cast<S>(entry(a.values[e])) * weight(column);
        const X* const entries = x + static_cast<long long>(column) * NRHS;
#pragma unroll
        for (int k = 0; k < NRHS; ++k) sum[k] += factor * entries[k];
    }
}

struct One {
    __device__ __forceinline__ soft operator()(int) const { return 1; }
};
struct Weighted {
    const soft* weights;
    __device__ __forceinline__ soft operator()(int column) const { return weights[column]; }
};

// One level of the preconditioner.  Off-diagonal entries may be rounded to bfloat16: the diagonal then makes up for it,
// so that row sums stay exact, and `spread` for what rounding did to the rows of P.
struct SoftMatrix {
    Rows<value_t> off;
    const soft* diagonal;
    const soft* smoother;
    const soft* spread;
};

// t = spread (r - A m r): pre-smoothing from zero and its residual
__device__ __forceinline__ void residual_row(const SoftMatrix& a, const soft* r, soft* t, int row) {
    const soft kept = 1 - a.diagonal[row] * a.smoother[row], spread = a.spread ? a.spread[row] : soft(1);
    const long long first = static_cast<long long>(row) * NRHS;
    soft sum[NRHS];
#pragma unroll
    for (int k = 0; k < NRHS; ++k) sum[k] = kept * r[first + k];
    add_row(a.off, row, r, Weighted{a.smoother}, soft(-1), sum);
#pragma unroll
    for (int k = 0; k < NRHS; ++k) t[first + k] = spread * sum[k];
}

// coarse_r = R t
__device__ __forceinline__ void restrict_row(const Rows<value_t>& restriction, const soft* t, soft* coarse_r, int row) {
    soft sum[NRHS] = {};
    add_row(restriction, row, t, One(), soft(1), sum);
#pragma unroll
    for (int k = 0; k < NRHS; ++k) coarse_r[static_cast<long long>(row) * NRHS + k] = sum[k];
}

// y = m r + spread P zc
__device__ __forceinline__ void prolong_row(const SoftMatrix& a, const Rows<value_t>& prolongation, const soft* r,
                                            const soft* coarse_z, soft* y, int row) {
    const soft spread = a.spread ? a.spread[row] : soft(1);
    const long long first = static_cast<long long>(row) * NRHS;
    soft sum[NRHS] = {};
    add_row(prolongation, row, coarse_z, One(), soft(1), sum);
#pragma unroll
    for (int k = 0; k < NRHS; ++k) y[first + k] = a.smoother[row] * r[first + k] + spread * sum[k];
}

// z = y + m (r - A y); dots_k += r_k z_k
__device__ __forceinline__ void post_row(const SoftMatrix& a, const soft* r, const soft* y, soft* z, int row,
                                         double (&dots)[NRHS]) {
    const soft diagonal = a.diagonal[row], smoother = a.smoother[row];
    const long long first = static_cast<long long>(row) * NRHS;
    soft sum[NRHS];
#pragma unroll
    for (int k = 0; k < NRHS; ++k) sum[k] = r[first + k] - diagonal * y[first + k];
    add_row(a.off, row, y, One(), soft(-1), sum);
#pragma unroll
    for (int k = 0; k < NRHS; ++k) {
        const soft value = y[first + k] + smoother * sum[k];
        z[first + k] = value;
        dots[k] += static_cast<double>(value) * r[first + k];
    }
}

// z = inverse r on the last level, n x n and symmetric
__device__ __forceinline__ void dense_row(const soft* inverse, const soft* r, soft* z, int n, int row, double (&dots)[NRHS]) {
    soft sum[NRHS] = {};
    for (int j = 0; j < n; ++j) {
        const soft factor = inverse[static_cast<long long>(j) * n + row];
#pragma unroll
        for (int k = 0; k < NRHS; ++k) sum[k] += factor * r[j * NRHS + k];
    }
#pragma unroll
    for (int k = 0; k < NRHS; ++k) {
        z[row * NRHS + k] = sum[k];
        dots[k] += static_cast<double>(sum[k]) * r[row * NRHS + k];
    }
}

// q = A p; dots_k += p_k q_k
__device__ __forceinline__ void apply_row(const Rows<real>& a, const real* p, real* q, int row, double (&dots)[NRHS]) {
    const long long first = static_cast<long long>(row) * NRHS;
    real sum[NRHS] = {};
    add_row(a, row, p, One(), real(1), sum);
#pragma unroll
    for (int k = 0; k < NRHS; ++k) {
        q[first + k] = sum[k];
        dots[k] += static_cast<double>(sum[k]) * p[first + k];
    }
}

// x += alpha p, r -= alpha q; soft_r is r in the preconditioner's precision
__device__ __forceinline__ void update_row(const double (&step)[NRHS], const real* p, const real* q, real* x, real* r,
                                           soft* soft_r, int row, double (&dots)[NRHS]) {
#pragma unroll
    for (int k = 0; k < NRHS; ++k) {
        const long long i = static_cast<long long>(row) * NRHS + k;
        // A column that is done stands still, also where its direction has become inf.
        if (step[k] == 0) continue;
        x[i] += static_cast<real>(step[k]) * p[i];
        const real left = r[i] - static_cast<real>(step[k]) * q[i];
        r[i] = left;
        soft_r[i] = static_cast<soft>(left);
        dots[k] += static_cast<double>(left) * left;
    }
}

// p = z + beta p
__device__ __forceinline__ void turn_row(const double (&turn)[NRHS], const soft* z, real* p, int row) {
#pragma unroll
    for (int k = 0; k < NRHS; ++k) {
        const long long i = static_cast<long long>(row) * NRHS + k;
        p[i] = static_cast<real>(z[i]) + static_cast<real>(turn[k]) * p[i];
    }
}

__device__ __forceinline__ bool any_active(const int* flags) {
    int any = 0;
#pragma unroll
    for (int k = 0; k < NRHS; ++k) any |= flags[FLAGS * k + ACTIVE];
    return any != 0;
}

// One of the decisions of scalars.cuh for every column that is still active.
template <class Decision>
__device__ __forceinline__ void decide(const Decision& decision, const double (&sum)[NRHS], double* scalars, int* flags) {
    for (int k = 0; k < NRHS; ++k)
        if (flags[FLAGS * k + ACTIVE]) decision(sum[k], scalars + SCALARS * k, flags + FLAGS * k);
}
