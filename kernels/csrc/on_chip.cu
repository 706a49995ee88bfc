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

#include "on_chip.cuh"

#define PLAIN 0
#define JACOBI 1
#define MULTIGRID 2

#define CONVERGED 0
#define MAX_ITERATIONS 1
#define DIVERGED 2
#define NONFINITE 4

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
