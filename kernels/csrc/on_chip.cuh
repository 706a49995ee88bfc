// What csrc/on_chip.cu does on one level: the grids of a system, slabs of the finest one, operators and transfers.
//
// On the finest level A is applied by differences, s u_i + sum T (u_i - u_j): with the diagonal, float32 loses what is
// left of the residual beside stiff cells, and refinement takes twice as many iterations (inclusions of contrast 1e4).
// Off-diagonals that would leave the grid are zero, so neighbours are found by linear index and one check of the range.

#include "common.cuh"

#define LEVELS_MAX 12
#define LEVEL_INTS 10
#define LEVEL_ARRAYS 4
#if DIMENSION == 2
#define STAR 2
#define HALF 4
#define FULL 9
#else
#define STAR 3
#define HALF 13
#define FULL 27
#endif

struct Level {
    int nz, ny, nx, cells;
    unsigned by_row, by_plane;  // 2^32 / nx and 2^32 / ny, rounded up: division by multiplication
    // Of the present system.  `diagonal` is the reaction on the finest level, the inverse on the last.
    const float *diagonal, *off, *smoother, *prolong;
    float *residual, *iterate, *defect;  // shared
};

// The slab of a vector of the finest grid that this block owns; all but the last have `stride` cells.
struct Slab {
    float* own;
    int first, cells, stride;
};

__device__ __forceinline__ float at(const Slab& slab, int i) {
    const int here = i - slab.first;
#if CLUSTER > 1
    // Mapped when they are needed: kept addresses would cost registers.
    if (here < 0) return cluster_map(slab.own, cluster_rank() - 1)[here + slab.stride];
    if (here >= slab.stride) return cluster_map(slab.own, cluster_rank() + 1)[here - slab.stride];
#endif
    return slab.own[here];
}

__device__ __forceinline__ Slab slab_of(float* own, int cells, int stride) {
    const int rank = CLUSTER > 1 ? static_cast<int>(cluster_rank()) : 0, first = min(rank * stride, cells);
    return {own, first, min(stride, cells - first), stride};
}

// A barrier of all that work on the system.
__device__ __forceinline__ void system_sync() {
#if CLUSTER > 1
    cluster_sync();
#else
    __syncthreads();
#endif
}

// Two sums over the system, in every thread, in one order.  Two sets of scratch take turns, so that no barrier is
// needed between the reads of one call and the writes of the next.
#define SCRATCH (2 * 64 + 4)
__device__ __forceinline__ void system_sum(double (&value)[2], double* scratch, int& turn) {
    turn ^= 1;
    block_sum(value, scratch + 64 * turn);
#if CLUSTER > 1
    double* const mine = scratch + 128 + 2 * turn;
    if (threadIdx.x == 0) mine[0] = value[0], mine[1] = value[1];
    cluster_sync();
    value[0] = value[1] = 0.0;
    for (unsigned rank = 0; rank < CLUSTER; ++rank) {
        const double* const theirs = cluster_map(mine, rank);
        value[0] += theirs[0], value[1] += theirs[1];
    }
#endif
}

__device__ __forceinline__ int quotient(int i, unsigned inverse) {
    return static_cast<int>((static_cast<unsigned long long>(static_cast<unsigned>(i)) * inverse) >> 32);
}

__device__ __forceinline__ void coordinates(const Level& level, int i, int& z, int& y, int& x) {
    const int row = level.nx == 1 ? i : quotient(i, level.by_row);
    x = i - row * level.nx;
    z = DIMENSION == 2 ? 0 : (level.ny == 1 ? row : quotient(row, level.by_plane));
    y = row - z * level.ny;
}

__device__ __forceinline__ int star_stride(const Level& level, int k) {
    return k == 0 ? 1 : k == 1 ? level.nx : level.nx * level.ny;
}

// Stride of offset k of the upper half of {-1,0,1}^D in lexicographic order.
__device__ __forceinline__ int half_stride(const Level& level, int k) {
    const int place = k + FULL / 2 + 1, dx = place % 3 - 1, dy = place / 3 % 3 - 1, dz = place / 9 - 1;
    return DIMENSION == 2 ? dy * level.nx + dx : (dz * level.ny + dy) * level.nx + dx;
}

// (A u)_i on the finest level.
__device__ __forceinline__ float star(const Level& level, const Slab& u, int i) {
    const float here = u.own[i - u.first];
    float sum = __ldg(level.diagonal + i) * here;
#pragma unroll
    for (int k = 0; k < STAR; ++k) {
        const int stride = star_stride(level, k);
        const float* const off = level.off + k * level.cells;
        if (i + stride < level.cells) sum += __ldg(off + i) * (at(u, i + stride) - here);
        if (i >= stride) sum += __ldg(off + i - stride) * (at(u, i - stride) - here);
    }
    return sum;
}

// (r - A M r)_i on the finest level, M the smoother's diagonal.
__device__ __forceinline__ float smoothed_defect(const Level& level, const Slab& r, int i, float here) {
    float sum = r.own[i - r.first] - __ldg(level.diagonal + i) * here;
#pragma unroll
    for (int k = 0; k < STAR; ++k) {
        const int stride = star_stride(level, k), up = i + stride, down = i - stride;
        const float* const off = level.off + k * level.cells;
        if (up < level.cells) sum -= __ldg(off + i) * (__ldg(level.smoother + up) * at(r, up) - here);
        if (down >= 0) sum -= __ldg(off + down) * (__ldg(level.smoother + down) * at(r, down) - here);
    }
    return sum;
}

// (A u)_i on a coarse level.
__device__ __forceinline__ float full(const Level& level, const float* u, int i) {
    float sum = __ldg(level.diagonal + i) * u[i];
#pragma unroll
    for (int k = 0; k < HALF; ++k) {
        const int stride = half_stride(level, k);
        const float* const off = level.off + k * level.cells;
        if (i + stride < level.cells) sum += __ldg(off + i) * u[i + stride];
        if (i >= stride) sum += __ldg(off + i - stride) * u[i - stride];
    }
    return sum;
}

// (P^T t)_I: `fine` reads t by linear index.
template <class Read>
__device__ __forceinline__ float restricted(const Level& level, const Level& coarse, int i, Read fine) {
    int z, y, x;
    coordinates(coarse, i, z, y, x);
    float sum = 0.0f;
    // Nine at a time: all of a box at once costs more registers than there are.
#pragma unroll 1
    for (int plane = 0; plane < FULL / 9; ++plane) {
        const int fz = DIMENSION == 2 ? 0 : 2 * z + plane - 1;
        if (fz < 0 || fz >= level.nz) continue;
#pragma unroll
        for (int place = 0; place < 9; ++place) {
            const int fx = 2 * x + place % 3 - 1, fy = 2 * y + place / 3 - 1;
            if (fx >= 0 && fx < level.nx && fy >= 0 && fy < level.ny)
                sum += __ldg(level.prolong + (9 * plane + place) * coarse.cells + i) *
                       fine((fz * level.ny + fy) * level.nx + fx);
        }
    }
    return sum;
}

// P zc at the fine cells 2 I + {0,1}^D, each handed to `put(i, value)`.  Every weight is used once per coarse cell.
template <class Put>
__device__ __forceinline__ void prolonged(const Level& level, const Level& coarse, const float* zc, int i, Put put) {
    int z, y, x;
    coordinates(coarse, i, z, y, x);
#pragma unroll 1
    for (int cz = 0; cz < DIMENSION - 1; ++cz) {
        const int fz = 2 * z + cz;
        if (fz >= level.nz) break;
#pragma unroll
        for (int child = 0; child < 4; ++child) {
            const int cx = child & 1, cy = child >> 1, fx = 2 * x + cx, fy = 2 * y + cy;
            if (fx >= level.nx || fy >= level.ny) continue;
            float sum = 0.0f;
#pragma unroll
            for (int parent = 0; parent < 1 << DIMENSION; ++parent) {
                const int px = parent & 1, py = parent >> 1 & 1, pz = parent >> 2;
                if (px > cx || py > cy || pz > cz) continue;
                if (x + px >= coarse.nx || y + py >= coarse.ny || z + pz >= coarse.nz) continue;
                const int from = i + (pz * coarse.ny + py) * coarse.nx + px;
                // The child lies at +1 of its lower parent and at -1 of the upper one, along each odd axis.
                const int plane = DIMENSION == 2 ? 0 : cz - 2 * pz + 1;
                const int place = (plane * 3 + cy - 2 * py + 1) * 3 + cx - 2 * px + 1;
                sum += __ldg(level.prolong + place * coarse.cells + from) * zc[from];
            }
            put((fz * level.ny + fy) * level.nx + fx, sum);
        }
    }
}

// z = inverse r on the coarsest level, a warp a row.
__device__ __forceinline__ void solve_coarsest(const Level& level, const float* inverse, const float* r, float* z) {
    const int lane = threadIdx.x & 31;
    for (int row = threadIdx.x >> 5; row < level.cells; row += THREADS / 32) {
        float sum = 0.0f;
        for (int column = lane; column < level.cells; column += 32)
            sum += __ldg(inverse + row * level.cells + column) * r[column];
#pragma unroll
        for (int by = 16; by > 0; by >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, by);
        if (lane == 0) z[row] = sum;
    }
}
