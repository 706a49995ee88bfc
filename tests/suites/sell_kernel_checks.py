"""Kernels of csrc/sell.cu and sell_small.cu against dense numpy in float64; only numpy is loaded."""

from dataclasses import dataclass

import numpy as np
from suites.grid_kernel_checks import ACTIVE, ITERATIONS, MOST_ITERATIONS, NORM2, RHO, SCALARS, STEP, TARGET, TURN

from forebay.kernels.sell import from_bfloat16, length_order, sell, soft_matrix, soft_transfer

BLOCK, COLUMNS, WINDOW = 64, 3, 48


@dataclass
class Csr:
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    shape: tuple

    @classmethod
    def of(cls, dense):
        rows, columns = np.nonzero(dense)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
        return cls(indptr, columns, dense[rows, columns], dense.shape)


def random_spd(rng, size, density):
    """Diagonally dominant, rows of very different lengths, one without neighbours."""
    chance = density * rng.uniform(0, 2, (size, 1))
    weights = np.triu(rng.random((size, size)) < chance, 1) * -rng.lognormal(0, 1, (size, size))
    weights[5], weights[:, 5] = 0, 0
    full = weights + weights.T
    return full + np.diag(-full.sum(1) + rng.lognormal(-2, 1, size))


def dense(stored, shape, column_order):
    """The matrix that a `Sell` holds, in the order of the unknowns."""
    values = from_bfloat16(stored.values) if stored.values.dtype == np.uint16 else stored.values
    matrix = np.zeros(shape)
    for row in range(shape[0]):
        begin, end = stored.slices[row // 32], stored.slices[row // 32 + 1]
        for entry in range(begin + row % 32, end, 32):
            matrix[stored.order[row], column_order[stored.columns[entry]]] += float(values[entry])
    return matrix


class Hierarchy:
    """Two levels on a random matrix, stored, and what they amount to in float64 after rounding."""

    def __init__(self, rng, bits, size=150, coarse=40):
        self.matrix = random_spd(rng, size, 0.03)
        groups = rng.integers(0, coarse, size)
        groups[:coarse] = np.arange(coarse)
        tentative = np.eye(coarse)[groups]
        prolong = tentative - 0.5 * (self.matrix / self.matrix.diagonal()[:, None]) @ tentative
        prolong[np.abs(prolong) < 0.02] = 0
        self.smoother = (1.5 / np.abs(self.matrix).sum(1)).astype(np.float32)
        csr, transfer = Csr.of(self.matrix), Csr.of(prolong)
        self.order, self.coarse_order = length_order(csr.indptr, WINDOW), rng.permutation(coarse)
        self.stored = sell(csr, self.order)
        self.soft = soft_matrix(csr, self.order, bits=bits)
        self.prolong, self.restriction, self.spread = soft_transfer(transfer, self.order, self.coarse_order, bits=bits)
        # All in the order of the storage from here on.
        by = np.ix_(self.order, self.order)
        self.a = self.matrix[by]
        off = dense(self.soft.off, self.matrix.shape, self.order)[by]
        self.rounded = off + np.diag(self.soft.diagonal.astype(float))
        spread = 1 if self.spread is None else self.spread[:, None].astype(float)
        self.p = spread * dense(self.prolong, prolong.shape, self.coarse_order)[np.ix_(self.order, self.coarse_order)]
        self.m = self.smoother[self.order]
        below = self.p.T @ self.rounded @ self.p
        self.inverse = np.linalg.inv(below).astype(np.float32)
        self.inverse = (self.inverse + self.inverse.T) / 2

    def cycle(self, r):
        m = self.m[:, None].astype(float)
        z = m * r
        z = z + self.p @ (self.inverse @ (self.p.T @ (r - self.rounded @ z)))
        return z + m * (r - self.rounded @ z)


class SellChecks:
    """All checks of one build; `run` raises AssertionError at the first kernel that is wrong."""

    def __init__(self, launcher, small_launcher, bits, seed):
        self.launcher, self.small, self.bits = launcher, small_launcher, bits
        self.rng = np.random.default_rng(seed)
        self.h = Hierarchy(self.rng, bits)
        self.scalars = self.rng.uniform(0.5, 2, (COLUMNS, SCALARS))
        self.flags = np.tile(np.int32([1, 3, -1, 99]), (COLUMNS, 1))
        self.flags[1, ACTIVE] = 0

    def run(self):
        for name in ("spmm", "update", "direction", "legs", "post", "coarsest", "small"):
            getattr(self, f"check_{name}")()

    def vectors(self, rows=None, dtype=np.float64):
        return self.rng.standard_normal((rows or len(self.h.a), COLUMNS)).astype(dtype)

    def launch(self, kernel, rows, args, launcher=None):
        (launcher or self.launcher).launch(kernel, (-(-rows // BLOCK),), (BLOCK,), 0, args)

    def sums(self, rows):
        self.after = self.scalars.copy(), self.flags.copy()
        self.tickets = np.zeros(1, np.uint32)
        return [np.full(-(-rows // BLOCK) * COLUMNS, np.nan), self.tickets, *self.after]

    def close(self, got, wanted, what, tolerance):
        error = np.abs(np.asarray(got, float) - wanted).max() / np.abs(wanted).max()
        assert error <= tolerance, f"{what}: off by {error:.1e} of the largest value"

    def decided(self, slot, wanted, what, tolerance):
        """The active columns have their numbers; the one that is done is as it was."""
        scalars, flags = self.after
        assert not self.tickets.any(), f"{what} leaves tickets"
        assert (scalars[1] == self.scalars[1]).all(), f"{what} decides for a column that is done"
        assert (flags[1] == self.flags[1]).all(), f"{what} decides for a column that is done"
        self.close(scalars[[0, 2], slot], wanted[[0, 2]], what, tolerance)

    def rows(self, stored):
        return [stored.slices, stored.columns, stored.values]

    def check_spmm(self):
        h, p = self.h, self.vectors()
        q, size = np.full_like(p, np.nan), len(h.a)
        self.launch("spmm_dot", size, [*self.rows(h.stored), p, q, *self.sums(size), np.int32(size)])
        self.close(q, h.a @ p, "spmm_dot", 1e-14)
        self.decided(STEP, self.scalars[:, RHO] / (p * (h.a @ p)).sum(0), "spmm_dot", 1e-13)

    def check_update(self):
        p, q, x, r = (self.vectors() for _ in range(4))
        before, soft, size = (x.copy(), r.copy()), np.full(x.shape, 7, np.float32), len(x)
        step = self.scalars[:, STEP] * [1, 0, 1]
        left = r - step * q
        self.scalars[:, TARGET] = [0, 0, 1.01 * (left[:, 2] ** 2).sum()]
        self.flags[0, MOST_ITERATIONS] = 4
        self.launch("update_dot", size, [p, q, x, r, soft, *self.sums(size), np.int32(size)])
        self.close(x, before[0] + step * p, "update_dot: x", 1e-15)
        self.close(r, left, "update_dot: r", 1e-15)
        assert (soft == np.where([True, False, True], left.astype(np.float32), 7)).all(), "update_dot: r in float32"
        self.decided(NORM2, (left**2).sum(0), "update_dot", 1e-13)
        assert self.after[1][:, :3].tolist() == [[0, 4, 1], [0, 3, -1], [0, 4, 0]], "update_dot: outcomes"

    def check_direction(self):
        z, p = self.vectors(dtype=np.float32), self.vectors()
        before = p.copy()
        self.launch("direction", len(p), [z, p, self.scalars, self.flags, np.int32(len(p))])
        self.close(p, z + self.scalars[:, TURN] * before, "direction", 1e-15)

    def check_legs(self):
        h, r = self.h, self.vectors(dtype=np.float32)
        size, coarse = h.p.shape
        t, below, y = np.full_like(r, np.nan), np.full((coarse, COLUMNS), np.nan, np.float32), np.full_like(r, np.nan)
        scaling = [h.soft.diagonal, h.m, h.spread]
        self.launch("residual", size, [*self.rows(h.soft.off), *scaling, r, t, self.flags, np.int32(size)])
        left = r - h.rounded @ (h.m[:, None].astype(float) * r)
        self.close(t, left * (1 if h.spread is None else h.spread[:, None]), "residual", 1e-5)
        self.launch("restriction", coarse, [*self.rows(h.restriction), t, below, self.flags, np.int32(coarse)])
        self.close(below, h.p.T @ left, "restriction", 1e-5)
        args = [*self.rows(h.prolong), h.m, h.spread, r, below, y, self.flags, np.int32(size)]
        self.launch("prolong", size, args)
        self.close(y, h.m[:, None] * r + h.p @ below, "prolong", 1e-5)

    def check_post(self):
        h, r, y = self.h, self.vectors(dtype=np.float32), self.vectors(dtype=np.float32)
        size = len(r)
        wanted = y + h.m[:, None] * (r - h.rounded @ y)
        for finest in (0, 1):
            z = np.full_like(r, np.nan)
            arrays = [*self.rows(h.soft.off), h.soft.diagonal, h.m, r, y, z]
            self.launch("post_dot", size, [*arrays, *self.sums(size), np.int32(size), np.int32(finest)])
            self.close(z, wanted, "post_dot", 1e-5)
            if finest:
                self.decided(RHO, (r * wanted).sum(0), "post_dot", 1e-4)
            else:
                assert (self.after[0] == self.scalars).all(), "post_dot decides on a coarse level"

    def check_coarsest(self):
        inverse = self.h.inverse
        r, size = self.vectors(len(inverse), np.float32), len(inverse)
        z = np.full_like(r, np.nan)
        self.launch("coarsest_dot", size, [inverse, r, z, *self.sums(size), np.int32(size), np.int32(1)])
        self.close(z, inverse @ r, "coarsest_dot", 1e-5)
        rho = (r * z).sum(0, dtype=float)
        self.decided(RHO, rho, "coarsest_dot", 1e-6)
        self.close(self.after[0][[0, 2], TURN], (rho / self.scalars[:, RHO])[[0, 2]], "coarsest_dot: beta", 1e-6)

    def check_small(self):
        """Three iterations of the whole solve, against the same in numpy; then on to the end."""
        h, b = self.h, self.vectors()
        size, coarse = h.p.shape
        b /= np.linalg.norm(b, axis=0)
        keep = [np.zeros((n, COLUMNS), np.float32) for n in (size, size, size, size, coarse, coarse)]
        level = [
            *self.rows(h.soft.off),
            h.soft.diagonal,
            h.m,
            h.spread,
            *self.rows(h.prolong),
            *self.rows(h.restriction),
        ]
        last = [None] * 12 + [keep[4], None, None, keep[5], h.inverse]
        levels = [*level, *keep[:4], None], last
        table = np.array([[0 if array is None else array.ctypes.data for array in arrays] for arrays in levels])
        for most in (0, 3, 60):
            x, p, q = (np.zeros((size, COLUMNS)) for _ in range(3))
            r, scalars, flags = (
                b.copy(),
                np.zeros((COLUMNS, SCALARS)),
                np.tile(np.int32([most > 0, 0, -1, most]), (COLUMNS, 1)),
            )
            keep[0][:] = b
            scalars[:, TARGET] = 1e-24
            blocks = 3
            work = [np.full(2 * blocks * COLUMNS, np.nan), np.zeros(1, np.uint32), scalars, flags]
            sizes = [table, np.int32([size, coarse]), np.int32(2)]
            args = [*self.rows(h.stored), *sizes, x, r, p, q, *work]
            self.small.launch("solve_small", (blocks,), (BLOCK,), 0, args, cooperative=True)
            if most == 0:
                assert not x.any(), "solve_small works where nobody is active"
                assert not flags[:, ITERATIONS].any(), "solve_small works where nobody is active"
            elif most == 3:
                self.close(x, self.three_steps(b), "solve_small after three iterations", 1e-5)
                assert flags[:, [ACTIVE, ITERATIONS]].tolist() == [[0, 3]] * COLUMNS, (
                    f"solve_small: flags {flags.tolist()}"
                )
            else:
                assert (flags[:, 2] == 0).all(), f"solve_small does not converge: {flags.tolist()}"
                residual = np.linalg.norm(b - h.a @ x, axis=0).max()
                assert residual < 2e-12, f"solve_small: residual {residual:.1e}"

    def three_steps(self, b):
        a, r, x, p, rho = self.h.a, b.copy(), np.zeros_like(b), np.zeros_like(b), None
        for _ in range(3):
            z = self.h.cycle(r)
            new = (r * z).sum(0)
            p = z + (0 if rho is None else new / rho) * p
            q, rho = a @ p, new
            step = rho / (p * q).sum(0)
            x, r = x + step * p, r - step * q
        return x


def check_all(launcher, small_launcher, bits, seed):
    SellChecks(launcher, small_launcher, bits, seed).run()
