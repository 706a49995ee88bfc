// Cells, stencils and transfers of the multigrid hierarchy; the layout is that of kernels/hierarchy.py.
//
// Two and three dimensions are one code: (z, y, x) with y absent, so z is the slow axis, where DIM is 2.
// Index within a system is an int (13 n < 2^31), the offset of a system is not.
#ifndef DIM
#define DIM 2
#endif
#ifndef REAL
#define REAL float
#endif

typedef REAL real;
constexpr int HAS_Y = DIM == 3;
constexpr int SLAB = HAS_Y ? 9 : 3;               // offsets of {-1, 0, 1}^D that share one dz
constexpr int CENTRE = HAS_Y ? 13 : 4;            // the offset 0 among them; also how many are positive
constexpr int OFFSETS = 2 * CENTRE + 1;

struct Shape {
    int z, y, x;
    __device__ __forceinline__ int plane() const { return y * x; }
    __device__ __forceinline__ int cells() const { return z * y * x; }
    __device__ __forceinline__ Shape coarse() const { return {(z + 1) / 2, (y + 1) / 2, (x + 1) / 2}; }
};

struct Cell {
    int z, y, x;
    __device__ __forceinline__ int in(const Shape& n) const { return (z * n.y + y) * n.x + x; }
    __device__ __forceinline__ bool inside(const Shape& n) const {
        return z >= 0 && z < n.z && y >= 0 && y < n.y && x >= 0 && x < n.x;
    }
};

// Position of an offset in {-1, 0, 1}^D, lexicographic.
__device__ __forceinline__ constexpr int place(int dz, int dy, int dx) { return CENTRE + SLAB * dz + 3 * dy * HAS_Y + dx; }

// (A u)_i on the finest level by differences, s u_i + sum T (u_i - u_j), see csrc/on_chip.cuh.  u(dz, dy, dx) gives the
// neighbour's value and is asked for cells of the grid only.
template <class U>
__device__ __forceinline__ real star_product(const U& u, const real* __restrict__ reaction, const real* __restrict__ off,
                                             const Cell& c, const Shape& n) {
    const int i = c.in(n), cells = n.cells(), plane = n.plane();
    const real here = u(0, 0, 0);
    real sum = reaction[i] * here;
    if (c.x > 0) sum += off[i - 1] * (u(0, 0, -1) - here);
    if (c.x + 1 < n.x) sum += off[i] * (u(0, 0, 1) - here);
    if (HAS_Y) {
        if (c.y > 0) sum += off[cells + i - n.x] * (u(0, -1, 0) - here);
        if (c.y + 1 < n.y) sum += off[cells + i] * (u(0, 1, 0) - here);
    }
    const real* along_z = off + (1 + HAS_Y) * cells;
    if (c.z > 0) sum += along_z[i - plane] * (u(-1, 0, 0) - here);
    if (c.z + 1 < n.z) sum += along_z[i] * (u(1, 0, 0) - here);
    return sum;
}

// (A u)_i on a coarse level: nine or twenty-seven points, of which `off` has the lexicographically positive half.
template <class U>
__device__ __forceinline__ real box_product(const U& u, const real* __restrict__ diagonal, const real* __restrict__ off,
                                            const Cell& c, const Shape& n) {
    const int i = c.in(n), cells = n.cells();
    real sum = diagonal[i] * u(0, 0, 0);
#pragma unroll
    for (int dz = -1; dz <= 1; ++dz)
#pragma unroll
        for (int dy = -HAS_Y; dy <= HAS_Y; ++dy)
#pragma unroll
            for (int dx = -1; dx <= 1; ++dx) {
                const int k = place(dz, dy, dx) - CENTRE;
                const Cell d{c.z + dz, c.y + dy, c.x + dx};
                if (k == 0 || !d.inside(n)) continue;
                const int entry = k > 0 ? (k - 1) * cells + i : (-k - 1) * cells + d.in(n);
                sum += off[entry] * u(dz, dy, dx);
            }
    return sum;
}

// `diagonal` is the reaction where the level is the finest, a STAR.
template <bool STAR, class U>
__device__ __forceinline__ real product(const U& u, const real* __restrict__ diagonal, const real* __restrict__ off,
                                        const Cell& c, const Shape& n) {
    return STAR ? star_product(u, diagonal, off, c, n) : box_product(u, diagonal, off, c, n);
}

// (P u)_i for the fine cell c: u at the one coarse cell below it, or at the two along each axis where it is odd.
template <class U>
__device__ __forceinline__ real interpolate(const U& u, const real* __restrict__ prolong, const Cell& c, const Shape& coarse) {
    const int cells = coarse.cells();
    real sum = 0;
    for (int a = 0; a <= (c.z & 1); ++a)
        for (int b = 0; b <= (c.y & 1); ++b)
            for (int d = 0; d <= (c.x & 1); ++d) {
                const Cell above{c.z / 2 + a, c.y / 2 + b, c.x / 2 + d};
                if (!above.inside(coarse)) continue;
                const int j = above.in(coarse);
                const int k = place(c.z - 2 * above.z, c.y - 2 * above.y, c.x - 2 * above.x);
                sum += (k == CENTRE ? real(1) : prolong[k * cells + j]) * u[j];
            }
    return sum;
}

// (P^T t)_I for the coarse cell c; t(dz, dy, dx) is the value at 2 I + o, 0 outside of the fine grid.
template <class T>
__device__ __forceinline__ real restricted(const T& t, const real* __restrict__ prolong, const Cell& c, const Shape& coarse) {
    const int cells = coarse.cells(), j = c.in(coarse);
    real sum = 0;
#pragma unroll
    for (int dz = -1; dz <= 1; ++dz)
#pragma unroll
        for (int dy = -HAS_Y; dy <= HAS_Y; ++dy)
#pragma unroll
            for (int dx = -1; dx <= 1; ++dx) {
                const int k = place(dz, dy, dx);
                sum += (k == CENTRE ? real(1) : prolong[k * cells + j]) * t(dz, dy, dx);
            }
    return sum;
}
