// Preconditioned conjugate gradients for one system per thread block, or per cluster of blocks, its vectors on chip.
//
//   A e = r in float32, M one V(1,1) cycle of black-box multigrid (or Jacobi, or nothing), all in one kernel.  Matrices
//   and transfers are read through the caches.  Blocks take the next system when they are done with one.
//
// Compiled for   DIMENSION 2 | 3     CLUSTER blocks that share a system    THREADS of a block
//                BLOCKS of a multiprocessor at least, which bounds the registers of a thread
//                DIRECTION_ON_CHIP 1 | 0: the search direction in shared memory, or in global memory to save a vector
//
// Shared memory of a block, in floats: residual r and direction p of its slab of the finest grid, r of level 1, and one
// arena.  The arena is t: in turn defect and iterate of the finest cycle, and q = A p.  Between restriction and
// prolongation t is dead, and all other vectors of the coarse levels lie in it.  x stays in global memory.  In a
// cluster the finest grid is cut into slabs of an even number of rows along axis 0; coarser levels are small, and every
// block keeps and computes all of them, so that only the finest level crosses between blocks.
//
// z = M r is never stored.  With d = r - A m r the defect after the first smoothing, r_1 = P^T d and z_1 = M_1 r_1,
//
//   <r, M r> = <m r, r + d> + <r_1, z_1>,
//
// so that beta is known before the last smoothing, which then makes z cell by cell and adds it to beta p.
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

#define PLAIN 0
#define JACOBI 1
#define MULTIGRID 2

#define CONVERGED 0
#define MAX_ITERATIONS 1
#define DIVERGED 2
#define NONFINITE 4

struct Level {
    int nz, ny, nx, cells;
    unsigned by_row, by_plane;  // 2^32 / nx and 2^32 / ny, rounded up: division by multiplication
    // Of the present system.  `diagonal` is the reaction on the finest level, the inverse on the last.
    const float *diagonal, *off, *smoother, *prolong;
    float *residual, *iterate, *defect;                // shared
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

// z_1 = M_1 r_1, in the iterate of level 1 if that is the last one and else in place of r_1; every block of a cluster
// for itself.  Returns the thread's part of <r_1, z_1>.  Not inlined: registers are scarce, and the call costs none.
__device__ __noinline__ double coarse_cycle(const Level* levels, int count) {
    double energy = 0.0;
    const int last = count - 1;
    for (int l = 1; l < last; ++l) {
        const Level& level = levels[l];
        const Level& coarse = levels[l + 1];
        if (l == 1) {
            for (int i = threadIdx.x; i < level.cells; i += THREADS)
                level.iterate[i] = __ldg(level.smoother + i) * level.residual[i];
            __syncthreads();
        }
        for (int i = threadIdx.x; i < level.cells; i += THREADS)
            level.defect[i] = level.residual[i] - full(level, level.iterate, i);
        __syncthreads();
        for (int i = threadIdx.x; i < coarse.cells; i += THREADS) {
            const float value = restricted(level, coarse, i, [&](int j) { return level.defect[j]; });
            coarse.residual[i] = value;
            if (l + 1 < last) coarse.iterate[i] = __ldg(coarse.smoother + i) * value;
        }
        __syncthreads();
    }
    const float* z = levels[last].iterate;
    solve_coarsest(levels[last], levels[last].diagonal, levels[last].residual, levels[last].iterate);
    __syncthreads();
    for (int i = threadIdx.x; last == 1 && i < levels[1].cells; i += THREADS)
        energy += static_cast<double>(levels[1].residual[i] * z[i]);
    for (int l = last - 1; l > 0; --l) {
        const Level& level = levels[l];
        const Level& coarse = levels[l + 1];
        for (int i = threadIdx.x; i < coarse.cells; i += THREADS)
            prolonged(level, coarse, z, i, [&](int j, float value) { level.iterate[j] += value; });
        __syncthreads();
        for (int i = threadIdx.x; i < level.cells; i += THREADS) {
            const float residual = level.residual[i];
            const float defect = residual - full(level, level.iterate, i);
            const float value = level.iterate[i] + __ldg(level.smoother + i) * defect;
            level.residual[i] = value;
            if (l == 1) energy += static_cast<double>(residual * value);
        }
        __syncthreads();
        z = level.residual;
    }
    return energy;
}

// All of the cycle but its last smoothing: t = m r + P z_1.  Returns the thread's part of <r, z>; a barrier must follow
// before t is read.
__device__ __forceinline__ double begin_cycle(const Level* levels, int count, const Slab& r, const Slab& t) {
    const Level level = levels[0], coarse = levels[1];
    double energy = 0.0;
    for (int here = threadIdx.x; here < t.cells; here += THREADS) {
        const float value = r.own[here], smooth = __ldg(level.smoother + t.first + here) * value;
        const float defect = smoothed_defect(level, r, t.first + here, smooth);
        t.own[here] = defect;
        energy += static_cast<double>(smooth * (value + defect));
    }
    system_sync();
    // Slabs have an even number of rows: the children of a coarse row are in one slab.
    const int row = level.cells / (DIMENSION == 2 ? level.ny : level.nz);
    const int coarse_row = coarse.cells / (DIMENSION == 2 ? coarse.ny : coarse.nz);
    const int begin = t.first / row / 2 * coarse_row, end = begin + (t.cells / row + 1) / 2 * coarse_row;
    for (int i = begin + threadIdx.x; i < end; i += THREADS) {
        const float value = restricted(level, coarse, i, [&](int j) { return at(t, j); });
#if CLUSTER > 1
        for (unsigned rank = 0; rank < CLUSTER; ++rank) cluster_map(coarse.residual, rank)[i] = value;
#else
        coarse.residual[i] = value;
#endif
    }
    system_sync();
    const double below = coarse_cycle(levels, count);
    const float* const z = count == 2 ? coarse.iterate : coarse.residual;
    for (int i = begin + threadIdx.x; i < end; i += THREADS)
        prolonged(level, coarse, z, i, [&](int j, float value) {
            t.own[j - t.first] = __ldg(level.smoother + j) * r.own[j - t.first] + value;
        });
    return t.first == 0 ? energy + below : energy;
}

// What there is of z = M r before beta is known; returns the thread's part of <r, z>.  A barrier must follow.
__device__ __forceinline__ double begin_preconditioning(const Level* levels, int count, int kind, const Slab& r,
                                                        const Slab& t) {
    if (kind == MULTIGRID && count > 1) return begin_cycle(levels, count, r, t);
    // A grid of one level is never shared by a cluster.
    if (kind == MULTIGRID) {
        solve_coarsest(levels[0], levels[0].prolong, r.own, t.own);
        __syncthreads();
    }
    double energy = 0.0;
    for (int here = threadIdx.x; here < r.cells; here += THREADS) {
        const float value = r.own[here];
        if (kind == JACOBI) t.own[here] = __ldg(levels[0].smoother + r.first + here) * value;
        if (kind == PLAIN) t.own[here] = value;
        energy += static_cast<double>(value * t.own[here]);
    }
    return energy;
}

// p = z + beta p.
__device__ __forceinline__ void finish_preconditioning(const Level& level, bool cycle, const Slab& r, const Slab& t,
                                                       const Slab& p, float beta) {
    for (int here = threadIdx.x; here < p.cells; here += THREADS) {
        const int i = p.first + here;
        float z = t.own[here];
        if (cycle) z += __ldg(level.smoother + i) * (r.own[here] - star(level, t, i));
        p.own[here] = z + beta * p.own[here];
    }
}

// The present system's levels, from the table of places and the addresses of the batch's arrays.
__device__ __forceinline__ void open_levels(const int* table, const long long* arrays, int count, bool multigrid,
                                            long long matrix, float* floats, Level* levels) {
    const int l = threadIdx.x;
    if (l >= count) return;
    const int* const row = table + l * LEVEL_INTS;
    const long long* const from = arrays + l * LEVEL_ARRAYS;
    const bool last = l + 1 == count;
    Level& level = levels[l];
    level.nz = row[0], level.ny = row[1], level.nx = row[2], level.cells = row[3];
    level.by_row = static_cast<unsigned>(row[4]), level.by_plane = static_cast<unsigned>(row[5]);
    level.residual = floats + row[6], level.iterate = floats + row[7], level.defect = floats + row[8];
    const long long offset = matrix * level.cells;
    level.diagonal = reinterpret_cast<const float*>(from[0]) + offset * (last && multigrid && l > 0 ? level.cells : 1);
    level.off = reinterpret_cast<const float*>(from[1]) + offset * (l == 0 ? STAR : HALF);
    level.smoother = reinterpret_cast<const float*>(from[2]) + offset;
    // One level alone keeps its inverse here, beside what A p takes.
    const long long weights = last ? offset * level.cells : matrix * row[LEVEL_INTS + 3] * FULL;
    level.prolong = reinterpret_cast<const float*>(from[3]) + weights;
}

// Every block of the system learns which one is next.
__device__ __forceinline__ int take_system(int* ticket, int* next) {
    if (threadIdx.x == 0 && (CLUSTER == 1 || cluster_rank() == 0)) {
        const int taken = atomicAdd(ticket, 1);
#if CLUSTER > 1
        for (unsigned rank = 0; rank < CLUSTER; ++rank) *cluster_map(next, rank) = taken;
#else
        *next = taken;
#endif
    }
    system_sync();
    return *next;
}

// Solves A x = b from x = 0 until ||b - A x|| <= target by the recursive residual.
//
// table      [levels][LEVEL_INTS] nz, ny, nx, cells, 2^32 / nx, 2^32 / ny, places of residual, iterate, defect among
//            the floats of shared memory, and of the finest level the cells of a slab
// arrays     [levels][LEVEL_ARRAYS] addresses of diagonal, off, smoother, prolong.  Of the finest level the first is
//            the reaction; of the last the inverse is the first, or the fourth where it is the finest too.  Without
//            multigrid there is one level; for Jacobi its smoother is 1 / diagonal
// shared_matrix  1: one matrix for all systems
// systems    [system_count] which systems of the batch to solve; ticket is 0 at the launch
// direction  [clusters][cells] where the direction is not on chip
// target     [batch] absolute; budget [batch] most iterations; iterations [batch] are added to; status [batch] outcome
KERNEL(THREADS, BLOCKS) pcg_on_chip(
    const int* __restrict__ table, const long long* __restrict__ arrays, int level_count, int kind, int shared_matrix,
    const int* __restrict__ systems, int system_count, int* ticket, const float* __restrict__ b, float* __restrict__ x,
    float* direction, const double* __restrict__ target, const int* __restrict__ budget, int* iterations, int* status) {
    DYNAMIC_SHARED(float, floats);
    SHARED(double, scratch, SCRATCH);
    SHARED(Level, levels, LEVELS_MAX);
    SHARED(int, next, 1);
    const int cells = table[3], stride = table[9];
    const Slab r = slab_of(floats, cells, stride);
    const Slab t = slab_of(floats + table[7], cells, stride);
    const long long own_direction = static_cast<long long>(blockIdx.x) * cells;
    const Slab p = slab_of(DIRECTION_ON_CHIP ? floats + stride : direction + own_direction, cells, stride);
    int turn = 0;
    // Blocks of a cluster may touch each other's memory once all of them have begun.
    system_sync();
    for (;;) {
        const int position = take_system(ticket, &next[0]);
        if (position >= system_count) break;
        const int system = systems[position];
        open_levels(table, arrays, level_count, kind == MULTIGRID, shared_matrix ? 0 : system, floats, levels);
        const long long offset = static_cast<long long>(system) * cells + r.first;
        double part[2] = {0.0, 0.0};
        for (int here = threadIdx.x; here < r.cells; here += THREADS) {
            const float value = b[offset + here];
            r.own[here] = value;
            p.own[here] = 0.0f;
            x[offset + here] = 0.0f;
            part[0] += static_cast<double>(value * value);
        }
        system_sum(part, scratch, turn);
        double square = part[0], energy = 0.0;
        const double goal = target[system] * target[system];
        const int most = budget[system];
        int done = 0, outcome = square <= goal ? CONVERGED : MAX_ITERATIONS;
        while (outcome == MAX_ITERATIONS && done < most) {
            const double before = energy;
            part[0] = begin_preconditioning(levels, level_count, kind, r, t);
            part[1] = 0.0;
            system_sum(part, scratch, turn);
            energy = part[0];
            if (!(energy > 0.0)) {
                outcome = DIVERGED;
                break;
            }
            const Level finest = levels[0];
            const float beta = done == 0 ? 0.0f : static_cast<float>(energy / before);
            finish_preconditioning(finest, kind == MULTIGRID && level_count > 1, r, t, p, beta);
            system_sync();
            part[0] = part[1] = 0.0;
            for (int here = threadIdx.x; here < p.cells; here += THREADS) {
                const float value = p.own[here], image = star(finest, p, p.first + here);
                t.own[here] = image;
                part[0] += static_cast<double>(value * image);
                part[1] += static_cast<double>(value * r.own[here]);
            }
            system_sum(part, scratch, turn);
            if (!(part[0] > 0.0)) {
                outcome = DIVERGED;
                break;
            }
            // <r, p> instead of <r, z>: the two differ by rounding, and this one is the exact line search.
            const float alpha = static_cast<float>(part[1] / part[0]);
            part[0] = part[1] = 0.0;
            for (int here = threadIdx.x; here < r.cells; here += THREADS) {
                x[offset + here] += alpha * p.own[here];
                const float value = r.own[here] - alpha * t.own[here];
                r.own[here] = value;
                part[0] += static_cast<double>(value * value);
            }
            system_sum(part, scratch, turn);
            square = part[0];
            ++done;
            if (square <= goal) outcome = CONVERGED;
        }
        if (threadIdx.x == 0 && r.first == 0) {
            iterations[system] += done;
            status[system] = square < 1e300 ? outcome : NONFINITE;
        }
    }
}

// u += scale e, then r = (b - A u) / size in float64, handed on in float32, and ||b - A u||: one block a system.
//
// A is given by its faces, slowest axis first (two in two dimensions), and its reaction, so that the residual is that of
// the operator itself, whatever the levels hold.  Where scale is 0, e is not read.
KERNEL(256) correct_and_measure(const double* __restrict__ face0, const double* __restrict__ face1,
                                const double* __restrict__ face2, const double* __restrict__ reaction, int nz, int ny,
                                int nx, int shared_matrix, const int* __restrict__ systems,
                                const double* __restrict__ b, double* u, const float* __restrict__ e,
                                const double* __restrict__ scale, const double* __restrict__ size,
                                float* __restrict__ r, double* __restrict__ norm) {
    SHARED(double, scratch, 32);
    const int system = systems[blockIdx.x], cells = nz * ny * nx;
    const long long matrix = shared_matrix ? 0 : system, offset = static_cast<long long>(system) * cells;
    const double weight = scale[system];
    double* const field = u + offset;
    for (int i = threadIdx.x; i < cells; i += blockDim.x)
        if (weight != 0.0) field[i] += weight * static_cast<double>(e[offset + i]);
    __syncthreads();
    const double* const by_z = face0 + matrix * (nz - 1) * ny * nx;
    const double* const by_y = (DIMENSION == 2 ? face0 : face1) + matrix * nz * (ny - 1) * nx;
    const double* const by_x = (DIMENSION == 2 ? face1 : face2) + matrix * nz * ny * (nx - 1);
    double part[1] = {0.0};
    for (int i = threadIdx.x; i < cells; i += blockDim.x) {
        const int row = i / nx, x = i - row * nx, z = row / ny, y = row - z * ny;
        const double here = field[i];
        double value = b[offset + i] - reaction[matrix * cells + i] * here;
        const int face_x = row * (nx - 1) + x, face_y = (z * (ny - 1) + y) * nx + x;
        if (x > 0) value += by_x[face_x - 1] * (field[i - 1] - here);
        if (x + 1 < nx) value += by_x[face_x] * (field[i + 1] - here);
        if (y > 0) value += by_y[face_y - nx] * (field[i - nx] - here);
        if (y + 1 < ny) value += by_y[face_y] * (field[i + nx] - here);
        if (z > 0) value += by_z[i - nx * ny] * (field[i - nx * ny] - here);
        if (z + 1 < nz) value += by_z[i] * (field[i + nx * ny] - here);
        part[0] += value * value;
        r[offset + i] = static_cast<float>(value / size[system]);
    }
    block_sum(part, scratch);
    if (threadIdx.x == 0) norm[system] = sqrt(part[0]);
}
