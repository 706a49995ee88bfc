// Preconditioned conjugate gradients on grids that do not fit on chip: a few kernels an iteration, each one pass
// over memory.  One iteration, for all systems of the batch that are still active:
//
//   apply_dot     q = A p, <p, q>                         -> alpha
//   update_dot    x += alpha p, r -= alpha q, <r, r>      -> converged?
//   down_*        next level's r = P^T (r - A m r)        once a level
//   coarsest      z = A^-1 r
//   up_*          y = m r + P z, z = y + m (r - A y)      once a level; on the finest also <r, z> -> beta
//   direction     p = z + beta p
//
// The finest level's A is given by the reaction s in place of the diagonal, and applied by differences: with the
// diagonal, float32 loses what is left of the residual beside stiff cells.
//
// Launch: blocks of BLOCK threads; grid (tiles of a plane, chunks of the slow axis, systems).  A block owns a tile of
// TILE_X x TILE_Y cells and marches along z.  `matrices` is the batch of the coefficients, or 1 where all systems have
// the same.  A system that is not active costs one read a block.
#include "scalars.cuh"
#include "grid.cuh"
#ifndef BLOCK
#define BLOCK 256
#endif

constexpr int TILE_X = HAS_Y ? 32 : BLOCK;
constexpr int TILE_Y = BLOCK / TILE_X;

// What a block works on.
struct Tile {
    int x, y, lane_x, lane_y, first, last, system;
    __device__ __forceinline__ Tile(const Shape& n, int chunk) {
        const int across = (n.x + TILE_X - 1) / TILE_X;
        x = blockIdx.x % across * TILE_X;
        y = blockIdx.x / across * TILE_Y;
        lane_x = threadIdx.x % TILE_X;
        lane_y = threadIdx.x / TILE_X;
        first = blockIdx.y * chunk;
        last = min(n.z, first + chunk);
        system = blockIdx.z;
    }
};

__device__ __forceinline__ long long matrix_of(int system, int matrices) { return matrices == 1 ? 0 : system; }

// --- the finest level's product --------------------------------------------------------------------------------------

// Values and links along z stay in registers: per cell, one read of p, of the reaction and of D links, one write of q.
__device__ __forceinline__ double march(const real* __restrict__ p, const real* __restrict__ reaction,
                                        const real* __restrict__ off, real* __restrict__ q, const Shape& n, const Tile& tile) {
    const int x = tile.x + tile.lane_x, y = tile.y + tile.lane_y, plane = n.plane(), cells = n.cells();
    if (x >= n.x || y >= n.y || tile.first >= tile.last) return 0;
    const real* along_y = off + cells;
    const real* along_z = off + (1 + HAS_Y) * cells;
    int i = tile.first * plane + y * n.x + x;
    real below = 0, link_below = 0, here = p[i];
    if (tile.first > 0) {
        below = p[i - plane];
        link_below = along_z[i - plane];
    }
    double sum = 0;
    for (int z = tile.first; z < tile.last; ++z, i += plane) {
        const real above = z + 1 < n.z ? p[i + plane] : real(0), link_above = along_z[i];
        real value = reaction[i] * here + link_below * (below - here) + link_above * (above - here);
        if (x > 0) value += off[i - 1] * (p[i - 1] - here);
        if (x + 1 < n.x) value += off[i] * (p[i + 1] - here);
        if (HAS_Y) {
            if (y > 0) value += along_y[i - n.x] * (p[i - n.x] - here);
            if (y + 1 < n.y) value += along_y[i] * (p[i + n.x] - here);
        }
        q[i] = value;
        sum += static_cast<double>(here) * value;
        below = here;
        here = above;
        link_below = link_above;
    }
    return sum;
}

KERNEL(BLOCK) apply_dot(const real* __restrict__ p, const real* __restrict__ reaction, const real* __restrict__ off,
                        real* __restrict__ q, double* partial, unsigned* tickets, double* scalars, int* flags, int nz, int ny,
                        int nx, int chunk, int matrices) {
    const Shape n{nz, ny, nx};
    const Tile tile(n, chunk);
    int* const mine = flags + FLAGS * tile.system;
    if (!mine[ACTIVE]) return;
    const long long cells = n.cells(), matrix = matrix_of(tile.system, matrices) * cells, vector = tile.system * cells;
    double sum[1] = {march(p + vector, reaction + matrix, off + DIM * matrix, q + vector, n, tile)};
    if (system_sum(sum, partial, tickets, tile.system) && threadIdx.x == 0)
        choose_step(sum[0], scalars + SCALARS * tile.system, mine);
}

// --- vectors; grid (any, 1, systems) ---------------------------------------------------------------------------------

KERNEL(BLOCK) update_dot(const real* __restrict__ p, const real* __restrict__ q, real* __restrict__ x, real* __restrict__ r,
                         double* partial, unsigned* tickets, double* scalars, int* flags, int cells) {
    const int system = blockIdx.z;
    int* const mine = flags + FLAGS * system;
    if (!mine[ACTIVE]) return;
    const long long vector = static_cast<long long>(system) * cells;
    const real step = static_cast<real>(scalars[SCALARS * system + STEP]);
    double sum[1] = {0};
    for (int i = blockIdx.x * BLOCK + threadIdx.x; i < cells; i += gridDim.x * BLOCK) {
        x[vector + i] += step * p[vector + i];
        const real left = r[vector + i] - step * q[vector + i];
        r[vector + i] = left;
        sum[0] += static_cast<double>(left) * left;
    }
    if (system_sum(sum, partial, tickets, system) && threadIdx.x == 0)
        test_convergence(sum[0], scalars + SCALARS * system, mine);
}

KERNEL(BLOCK) direction(const real* __restrict__ z, real* __restrict__ p, const double* scalars, const int* flags, int cells) {
    const int system = blockIdx.z;
    if (!flags[FLAGS * system + ACTIVE]) return;
    const long long vector = static_cast<long long>(system) * cells;
    const real turn = static_cast<real>(scalars[SCALARS * system + TURN]);
    for (int i = blockIdx.x * BLOCK + threadIdx.x; i < cells; i += gridDim.x * BLOCK)
        p[vector + i] = z[vector + i] + turn * p[vector + i];
}

// z = m r: a diagonal in place of the cycle.
KERNEL(BLOCK) scale_dot(const real* __restrict__ r, const real* __restrict__ m, real* __restrict__ z, double* partial,
                        unsigned* tickets, double* scalars, int* flags, int cells, int matrices) {
    const int system = blockIdx.z;
    int* const mine = flags + FLAGS * system;
    if (!mine[ACTIVE]) return;
    const long long vector = static_cast<long long>(system) * cells, matrix = matrix_of(system, matrices) * cells;
    double sum[1] = {0};
    for (int i = blockIdx.x * BLOCK + threadIdx.x; i < cells; i += gridDim.x * BLOCK) {
        const real value = m[matrix + i] * r[vector + i];
        z[vector + i] = value;
        sum[0] += static_cast<double>(value) * r[vector + i];
    }
    if (system_sum(sum, partial, tickets, system) && threadIdx.x == 0)
        choose_turn(sum[0], scalars + SCALARS * system, mine);
}

// --- down: pre-smoothing from zero, residual and restriction ---------------------------------------------------------

// m r at a neighbour: what one sweep from zero gives.
struct Smoothed {
    const real* m;
    const real* r;
    int i, plane, row;
    __device__ __forceinline__ real operator()(int dz, int dy, int dx) const {
        const int j = i + dz * plane + dy * row + dx;
        return m[j] * r[j];
    }
};

constexpr int WIDE = 2 * TILE_X + 1;                // fine cells under a tile of coarse ones
constexpr int DEEP = HAS_Y ? 2 * TILE_Y + 1 : 1;
constexpr int RING = 5;                             // planes: three that are read, two that are already written

// Grid and chunk are those of the coarse level.
template <bool STAR>
__device__ __forceinline__ void down(const real* __restrict__ r, const real* __restrict__ m, const real* __restrict__ diagonal,
                                     const real* __restrict__ off, const real* __restrict__ prolong,
                                     real* __restrict__ coarse_r, const int* flags, const Shape& n, int chunk, int matrices) {
    SHARED(real, ring, RING * WIDE * DEEP);
    const Shape coarse = n.coarse();
    const Tile tile(coarse, chunk);
    if (!flags[FLAGS * tile.system + ACTIVE]) return;
    const long long cells = n.cells(), matrix = matrix_of(tile.system, matrices), coarse_cells = coarse.cells();
    constexpr int links = STAR ? DIM : CENTRE;
    r += tile.system * cells;
    coarse_r += tile.system * coarse_cells;
    m += matrix * cells;
    diagonal += matrix * cells;
    off += matrix * links * cells;
    prolong += matrix * OFFSETS * coarse_cells;

    for (int z = 2 * tile.first - 1; z < 2 * tile.last; ++z) {
        real* const plane = ring + (z + RING) % RING * (WIDE * DEEP);
        for (int k = threadIdx.x; k < WIDE * DEEP; k += BLOCK) {
            const Cell c{z, HAS_Y ? 2 * tile.y - 1 + k / WIDE : 0, 2 * tile.x - 1 + k % WIDE};
            real left = 0;
            if (c.inside(n)) {
                const int i = c.in(n);
                left = r[i] - product<STAR>(Smoothed{m, r, i, n.plane(), n.x}, diagonal, off, c, n);
            }
            plane[k] = left;
        }
        if (z < 2 * tile.first || z % 2 == 0) continue;
        __syncthreads();
        const Cell c{z / 2, tile.y + tile.lane_y, tile.x + tile.lane_x};
        if (!c.inside(coarse)) continue;
        const int corner = (HAS_Y ? (2 * tile.lane_y + 1) * WIDE : 0) + 2 * tile.lane_x + 1;
        const auto under = [&](int dz, int dy, int dx) {
            return ring[(2 * c.z + dz + RING) % RING * (WIDE * DEEP) + corner + dy * WIDE + dx];
        };
        coarse_r[c.in(coarse)] = restricted(under, prolong, c, coarse);
    }
}

KERNEL(BLOCK, 2) down_star(const real* __restrict__ r, const real* __restrict__ m, const real* __restrict__ reaction,
                        const real* __restrict__ off, const real* __restrict__ prolong, real* __restrict__ coarse_r,
                        const int* flags, int nz, int ny, int nx, int chunk, int matrices) {
    down<true>(r, m, reaction, off, prolong, coarse_r, flags, Shape{nz, ny, nx}, chunk, matrices);
}

KERNEL(BLOCK, 2) down_box(const real* __restrict__ r, const real* __restrict__ m, const real* __restrict__ diagonal,
                       const real* __restrict__ off, const real* __restrict__ prolong, real* __restrict__ coarse_r,
                       const int* flags, int nz, int ny, int nx, int chunk, int matrices) {
    down<false>(r, m, diagonal, off, prolong, coarse_r, flags, Shape{nz, ny, nx}, chunk, matrices);
}

// --- up: prolongation and post-smoothing -----------------------------------------------------------------------------

constexpr int BROAD = TILE_X + 2;                   // a tile with its neighbours
constexpr int TALL = HAS_Y ? TILE_Y + 2 : 1;
constexpr int PLANES = 4;                           // three that are read, one that is already written

// z = y + m (r - A y) with y = m r + P zc, which lives in shared memory alone; returns this thread's part of <r, z>.
template <bool STAR>
__device__ __forceinline__ double up(const real* __restrict__ r, const real* __restrict__ m, const real* __restrict__ diagonal,
                                     const real* __restrict__ off, const real* __restrict__ prolong,
                                     const real* __restrict__ coarse_z, real* __restrict__ z_out, const Shape& n,
                                     const Tile& tile, int matrices) {
    SHARED(real, ring, PLANES * BROAD * TALL);
    const Shape coarse = n.coarse();
    const long long cells = n.cells(), matrix = matrix_of(tile.system, matrices), coarse_cells = coarse.cells();
    constexpr int links = STAR ? DIM : CENTRE;
    r += tile.system * cells;
    z_out += tile.system * cells;
    coarse_z += tile.system * coarse_cells;
    m += matrix * cells;
    diagonal += matrix * cells;
    off += matrix * links * cells;
    prolong += matrix * OFFSETS * coarse_cells;

    double sum = 0;
    for (int ahead = tile.first - 1; ahead <= tile.last; ++ahead) {
        real* const plane = ring + (ahead + PLANES) % PLANES * (BROAD * TALL);
        for (int k = threadIdx.x; k < BROAD * TALL; k += BLOCK) {
            const Cell c{ahead, HAS_Y ? tile.y - 1 + k / BROAD : 0, tile.x - 1 + k % BROAD};
            real value = 0;
            if (c.inside(n)) {
                const int i = c.in(n);
                value = m[i] * r[i] + interpolate(coarse_z, prolong, c, coarse);
            }
            plane[k] = value;
        }
        if (ahead <= tile.first) continue;
        __syncthreads();
        const Cell c{ahead - 1, tile.y + tile.lane_y, tile.x + tile.lane_x};
        if (!c.inside(n)) continue;
        const int corner = (HAS_Y ? (tile.lane_y + 1) * BROAD : 0) + tile.lane_x + 1, i = c.in(n);
        const auto y = [&](int dz, int dy, int dx) {
            return ring[(c.z + dz + PLANES) % PLANES * (BROAD * TALL) + corner + dy * BROAD + dx];
        };
        const real value = y(0, 0, 0) + m[i] * (r[i] - product<STAR>(y, diagonal, off, c, n));
        z_out[i] = value;
        sum += static_cast<double>(value) * r[i];
    }
    return sum;
}

KERNEL(BLOCK, 2) up_star(const real* __restrict__ r, const real* __restrict__ m, const real* __restrict__ reaction,
                      const real* __restrict__ off, const real* __restrict__ prolong, const real* __restrict__ coarse_z,
                      real* __restrict__ z, double* partial, unsigned* tickets, double* scalars, int* flags, int nz, int ny,
                      int nx, int chunk, int matrices) {
    const Shape n{nz, ny, nx};
    const Tile tile(n, chunk);
    int* const mine = flags + FLAGS * tile.system;
    if (!mine[ACTIVE]) return;
    double sum[1] = {up<true>(r, m, reaction, off, prolong, coarse_z, z, n, tile, matrices)};
    if (system_sum(sum, partial, tickets, tile.system) && threadIdx.x == 0)
        choose_turn(sum[0], scalars + SCALARS * tile.system, mine);
}

KERNEL(BLOCK, 2) up_box(const real* __restrict__ r, const real* __restrict__ m, const real* __restrict__ diagonal,
                     const real* __restrict__ off, const real* __restrict__ prolong, const real* __restrict__ coarse_z,
                     real* __restrict__ z, const int* flags, int nz, int ny, int nx, int chunk, int matrices) {
    const Shape n{nz, ny, nx};
    const Tile tile(n, chunk);
    if (!flags[FLAGS * tile.system + ACTIVE]) return;
    up<false>(r, m, diagonal, off, prolong, coarse_z, z, n, tile, matrices);
}

// --- the last level: grid (1, 1, systems) ----------------------------------------------------------------------------

// z = inverse r, at most 64 cells.  `finest`: there is no level above, so <r, z> is wanted.
KERNEL(BLOCK) coarsest(const real* __restrict__ r, const real* __restrict__ inverse, real* __restrict__ z, double* partial,
                       unsigned* tickets, double* scalars, int* flags, int cells, int matrices, int finest) {
    SHARED(real, right, 64);
    const int system = blockIdx.z;
    int* const mine = flags + FLAGS * system;
    if (!mine[ACTIVE]) return;
    r += static_cast<long long>(system) * cells;
    z += static_cast<long long>(system) * cells;
    inverse += matrix_of(system, matrices) * cells * cells;
    for (int i = threadIdx.x; i < cells; i += BLOCK) right[i] = r[i];
    __syncthreads();
    double sum[1] = {0};
    for (int i = threadIdx.x; i < cells; i += BLOCK) {
        real value = 0;
        for (int j = 0; j < cells; ++j) value += inverse[j * cells + i] * right[j];
        z[i] = value;
        sum[0] += static_cast<double>(value) * right[i];
    }
    if (finest && system_sum(sum, partial, tickets, system) && threadIdx.x == 0)
        choose_turn(sum[0], scalars + SCALARS * system, mine);
}

// --- the certificate -------------------------------------------------------------------------------------------------

__device__ __forceinline__ double flow(const double* __restrict__ face, double here, double there, long long entry) {
    return face[entry] * (here - there);
}

// residual = b - A x in float64 from faces and reaction themselves (kernels/stencil.py), norm2 = its square, grid as
// for apply_dot.  Nothing of the inner iteration enters but x.
KERNEL(BLOCK) true_residual(const double* __restrict__ x, const double* __restrict__ b, const double* __restrict__ faces_z,
                            const double* __restrict__ faces_y, const double* __restrict__ faces_x,
                            const double* __restrict__ reaction, double* __restrict__ residual, double* partial,
                            unsigned* tickets, double* norm2, int nz, int ny, int nx, int chunk, int matrices) {
    const Shape n{nz, ny, nx};
    const Tile tile(n, chunk);
    const long long matrix = matrix_of(tile.system, matrices), cells = n.cells();
    const int plane = n.plane(), cx = tile.x + tile.lane_x, cy = tile.y + tile.lane_y;
    x += tile.system * cells;
    b += tile.system * cells;
    residual += tile.system * cells;
    reaction += matrix * cells;
    faces_z += matrix * (nz - 1) * plane;
    faces_x += matrix * nz * ny * (nx - 1);
    if (HAS_Y) faces_y += matrix * nz * (ny - 1) * nx;
    double sum[1] = {0};
    if (cx < nx && cy < ny)
        for (int z = tile.first; z < tile.last; ++z) {
            const int i = z * plane + cy * nx + cx, fx = (z * ny + cy) * (nx - 1) + cx, fy = (z * (ny - 1) + cy) * nx + cx;
            const double here = x[i];
            double value = reaction[i] * here;
            if (cx > 0) value += flow(faces_x, here, x[i - 1], fx - 1);
            if (cx + 1 < nx) value += flow(faces_x, here, x[i + 1], fx);
            if (HAS_Y && cy > 0) value += flow(faces_y, here, x[i - nx], fy - nx);
            if (HAS_Y && cy + 1 < ny) value += flow(faces_y, here, x[i + nx], fy);
            if (z > 0) value += flow(faces_z, here, x[i - plane], i - plane);
            if (z + 1 < nz) value += flow(faces_z, here, x[i + plane], i);
            const double left = b[i] - value;
            residual[i] = left;
            sum[0] += left * left;
        }
    if (system_sum(sum, partial, tickets, tile.system) && threadIdx.x == 0) norm2[tile.system] = sum[0];
}
