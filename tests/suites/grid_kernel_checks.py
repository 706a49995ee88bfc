"""Kernels of csrc/large_grid.cu against numpy in float64, one at a time, on random levels that are no operator's.

Only numpy is loaded: the process that runs this has AddressSanitizer, under which imports are slow.
"""

import itertools
from dataclasses import dataclass

import numpy as np

BLOCK = 64
SCALARS, FLAGS = 5, 4
RHO, STEP, TURN, NORM2, TARGET = range(SCALARS)
ACTIVE, ITERATIONS, OUTCOME, MOST_ITERATIONS = range(FLAGS)


def box(dimension):
    return list(itertools.product((-1, 0, 1), repeat=dimension))


def links(dimension, *, star):
    positive = [o for o in box(dimension) if o > (0,) * dimension]
    return [o for o in positive if np.abs(o).sum() == 1] if star else positive


def shifted(shape, offset):
    """Slices of the cells that have a neighbour at `offset`, and of those neighbours."""
    here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, shape, strict=True))
    return here, there


@dataclass
class Level:
    """One random level of `count` systems in the layout of kernels/hierarchy.py, and what it does to vectors."""

    shape: tuple
    star: bool
    diagonal: np.ndarray
    """Of a star, the finest level, the reaction: what is left of the diagonal without the links."""
    off: np.ndarray
    smoother: np.ndarray
    prolong: np.ndarray

    @classmethod
    def random(cls, rng, shape, count, dtype, *, star):
        dimension, coarse = len(shape), tuple((n + 1) // 2 for n in shape)
        off = -rng.lognormal(0, 1, (count, len(links(dimension, star=star)), *shape))
        for k, offset in enumerate(links(dimension, star=star)):
            kept = np.zeros(shape, bool)
            kept[shifted(shape, offset)[0]] = True
            off[:, k][:, ~kept] = 0
        prolong = rng.uniform(0.1, 1, (count, 3**dimension, *coarse))
        cells = np.stack(np.meshgrid(*[np.arange(n) for n in coarse], indexing="ij"))
        for k, offset in enumerate(box(dimension)):
            fine = 2 * cells + np.reshape(offset, (-1, *[1] * dimension))
            outside = ((fine < 0) | (fine >= np.reshape(shape, (-1, *[1] * dimension)))).any(0)
            prolong[:, k][:, outside] = 0
            if not any(offset):
                prolong[:, k] = 1
        diagonal, smoother = rng.lognormal(2, 1, (count, *shape)), rng.uniform(0.05, 0.5, (count, *shape))
        return cls(shape, star, *(a.astype(dtype) for a in (diagonal, off, smoother, prolong)))

    @property
    def coarse(self):
        return tuple((n + 1) // 2 for n in self.shape)

    def apply(self, system, u):
        result = self.diagonal[system].astype(float) * u
        for k, offset in enumerate(links(len(self.shape), star=self.star)):
            here, there = shifted(self.shape, offset)
            link = self.off[system, k][here].astype(float)
            of_here, of_there = u[here].copy(), u[there].copy()
            result[here] += link * (of_there - self.star * of_here)
            result[there] += link * (of_here - self.star * of_there)
        return result

    def transfer(self, system):
        """P as a dense matrix."""
        coarse, fine = self.coarse, self.shape
        matrix = np.zeros((np.prod(fine), np.prod(coarse)))
        for j, cell in enumerate(np.ndindex(*coarse)):
            for k, offset in enumerate(box(len(fine))):
                at = tuple(2 * c + o for c, o in zip(cell, offset, strict=True))
                if all(0 <= a < n for a, n in zip(at, fine, strict=True)):
                    matrix[np.ravel_multi_index(at, fine), j] = self.prolong[system, k][cell]
        return matrix


class GridChecks:
    """All checks of one build; `run` raises AssertionError at the first kernel that is wrong."""

    def __init__(self, launcher, dimension, dtype, seed):
        self.launcher, self.dimension, self.dtype = launcher, dimension, dtype
        self.rng = np.random.default_rng(seed)
        self.tolerance = 3e-6 if dtype == np.float32 else 1e-13

    def run(self, shape, batch, matrices, chunk):
        self.shape, self.batch, self.matrices, self.chunk = shape, batch, matrices, chunk
        self.scalars = self.rng.uniform(0.5, 2, (batch, SCALARS))
        self.flags = np.tile(np.int32([1, 3, -1, 99]), (batch, 1))
        if batch > 2:
            self.flags[1, ACTIVE] = 0
        for name in ("apply", "constants", "update", "direction", "scale", "down", "up", "coarsest", "true_residual"):
            getattr(self, f"check_{name}")()

    # What the kernels get.

    def vectors(self, shape=None, count=1):
        made = [self.rng.standard_normal((self.batch, *(shape or self.shape))).astype(self.dtype) for _ in range(count)]
        return made if count > 1 else made[0]

    def empty(self, shape=None, dtype=None):
        return np.full((self.batch, *(shape or self.shape)), np.nan, dtype or self.dtype)

    def sizes(self, shape):
        z, y, x = shape if self.dimension == 3 else (shape[0], 1, shape[1])
        return np.int32(z), np.int32(y), np.int32(x)

    def grid(self, shape):
        """Tiles of a plane, chunks, systems."""
        wide = 32 if self.dimension == 3 else BLOCK
        tiles = -(-shape[-1] // wide) * (-(-shape[1] // (BLOCK // wide)) if self.dimension == 3 else 1)
        return tiles, -(-shape[0] // self.chunk), self.batch

    def launch(self, kernel, grid, args):
        self.launcher.launch(kernel, grid, (BLOCK,), 0, args)

    def sums(self, grid):
        """partial, tickets, scalars, flags; the last two are copies that `decided` looks at."""
        self.after = self.scalars.copy(), self.flags.copy()
        self.tickets = np.zeros(self.batch, np.uint32)
        return [np.full(self.batch * grid[0] * grid[1], np.nan), self.tickets, *self.after]

    def system(self, level_system):
        return 0 if self.matrices == 1 else level_system

    @property
    def active(self):
        return [s for s in range(self.batch) if self.flags[s, ACTIVE]]

    # What they must do.

    def close(self, got, wanted, what):
        error = np.abs(np.asarray(got, float) - wanted).max() / max(np.abs(wanted).max(), 1e-300)
        assert error <= self.tolerance, f"{what}: off by {error:.1e} of the largest value"

    def compare(self, got, wanted, what):
        """Active systems have `wanted(system)`, the others keep what they had (NaN)."""
        for s in range(self.batch):
            if self.flags[s, ACTIVE]:
                self.close(got[s], wanted(s), f"{what}, system {s} of shape {self.shape}")
            else:
                assert np.isnan(got[s]).all(), f"{what} touches system {s}, which is done"

    def decided(self, slot, value, derived, what):
        """The reduction arrived in its slot, what follows from it as well, and nothing else moved."""
        scalars, flags = self.after
        assert not self.tickets.any(), f"{what} leaves tickets"
        for s in range(self.batch):
            if s not in self.active:
                assert (scalars[s] == self.scalars[s]).all(), f"{what} decides for system {s}, which is done"
                assert (flags[s] == self.flags[s]).all(), f"{what} decides for system {s}, which is done"
                continue
            self.close(scalars[s, slot], value(s), f"{what}: sum of system {s}")
            if derived is not None:
                self.close(scalars[s, derived[0]], derived[1](s), f"{what}: factor of system {s}")
        return flags

    def dot(self, a, b):
        return (np.asarray(a, float) * np.asarray(b, float)).sum()

    def random_level(self, *, star, shape=None):
        return Level.random(self.rng, shape or self.shape, self.matrices, self.dtype, star=star)

    def check_apply(self):
        level, p, q = self.random_level(star=True), self.vectors(), self.empty()
        grid = self.grid(self.shape)
        args = [p, level.diagonal, level.off, q, *self.sums(grid), *self.sizes(self.shape)]
        self.launch("apply_dot", grid, [*args, np.int32(self.chunk), np.int32(self.matrices)])
        product = {s: level.apply(self.system(s), p[s].astype(float)) for s in self.active}
        self.compare(q, product.__getitem__, "apply_dot")
        step = {s: self.scalars[s, RHO] / self.dot(p[s], product[s]) for s in self.active}
        flags = self.decided(STEP, lambda s: max(0.0, step[s]), None, "apply_dot")
        for s in self.active:
            verdict = (1, -1) if step[s] > 0 else (0, 2)
            assert (flags[s, ACTIVE], flags[s, OUTCOME]) == verdict, f"apply_dot: verdict {flags[s]}"

    def check_constants(self):
        """What is constant flows nowhere, to the last bit, however stiff the links are."""
        level, grid = self.random_level(star=True), self.grid(self.shape)
        level.off *= self.dtype(1e6)
        p, q = np.full_like(self.vectors(), 0.7), self.empty()
        args = [p, level.diagonal, level.off, q, *self.sums(grid), *self.sizes(self.shape)]
        self.launch("apply_dot", grid, [*args, np.int32(self.chunk), np.int32(self.matrices)])
        for s in self.active:
            assert (q[s] == level.diagonal[self.system(s)] * self.dtype(0.7)).all(), "apply_dot: constants flow"

    def check_update(self):
        p, q, x, r = self.vectors(count=4)
        cells, before, grid = int(np.prod(self.shape)), (x.copy(), r.copy()), (3, 1, self.batch)
        # The first system is at its goal after this step, the last one at its last iteration.
        step = {s: self.scalars[s, STEP].astype(self.dtype).astype(float) for s in range(self.batch)}
        left = {s: r[s].astype(float) - step[s] * q[s] for s in self.active}
        self.scalars[:, TARGET] = 0
        self.scalars[0, TARGET] = 1.01 * self.dot(left[0], left[0])
        self.flags[-1, MOST_ITERATIONS] = 4
        self.launch("update_dot", grid, [p, q, x, r, *self.sums(grid), np.int32(cells)])
        for s in range(self.batch):
            done = s not in self.active
            self.close(
                x[s], before[0][s].astype(float) + (0 if done else step[s]) * p[s], f"update_dot: x of system {s}"
            )
            self.close(r[s], before[1][s] if done else left[s], f"update_dot: r of system {s}")
        flags = self.decided(NORM2, lambda s: self.dot(left[s], left[s]), None, "update_dot")
        outcomes = {s: (0 if s == 0 else 1 if s == self.batch - 1 else -1) for s in self.active}
        for s, outcome in outcomes.items():
            assert flags[s].tolist() == [int(outcome < 0), 4, outcome, 4 if s == self.batch - 1 else 99], (
                f"flags {flags[s]}"
            )

    def check_direction(self):
        z, p = self.vectors(count=2)
        before = p.copy()
        self.launch("direction", (2, 1, self.batch), [z, p, self.scalars, self.flags, np.int32(z[0].size)])
        for s in range(self.batch):
            turn = self.scalars[s, TURN].astype(self.dtype).astype(float)
            self.close(p[s], z[s] + turn * before[s] if s in self.active else before[s], f"direction, system {s}")

    def check_scale(self):
        r, z, grid = self.vectors(), self.empty(), (3, 1, self.batch)
        m = self.rng.uniform(0.5, 1, (self.matrices, *self.shape)).astype(self.dtype)
        self.launch("scale_dot", grid, [r, m, z, *self.sums(grid), np.int32(r[0].size), np.int32(self.matrices)])
        wanted = {s: m[self.system(s)].astype(float) * r[s] for s in self.active}
        self.compare(z, wanted.__getitem__, "scale_dot")
        self.turned({s: self.dot(wanted[s], r[s]) for s in self.active}, "scale_dot")

    def turned(self, rho, what):
        self.decided(RHO, rho.__getitem__, (TURN, lambda s: rho[s] / self.scalars[s, RHO]), what)

    def check_down(self):
        for star in (True, False):
            level, r = self.random_level(star=star), self.vectors()
            coarse, out = level.coarse, self.empty(level.coarse)
            arrays = [r, level.smoother, level.diagonal, level.off, level.prolong, out, self.flags]
            name = "down_star" if star else "down_box"
            sizes = [*self.sizes(self.shape), np.int32(self.chunk), np.int32(self.matrices)]
            self.launch(name, self.grid(coarse), [*arrays, *sizes])

            def wanted(s, level=level, r=r):
                k = self.system(s)
                left = r[s] - level.apply(k, level.smoother[k].astype(float) * r[s])
                return (level.transfer(k).T @ left.ravel()).reshape(level.coarse)

            self.compare(out, wanted, name)

    def check_up(self):
        for star in (True, False):
            level, r, out = self.random_level(star=star), self.vectors(), self.empty()
            below, grid = self.vectors(level.coarse), self.grid(self.shape)
            arrays = [r, level.smoother, level.diagonal, level.off, level.prolong, below, out]
            sizes = [*self.sizes(self.shape), np.int32(self.chunk), np.int32(self.matrices)]
            name, steering = ("up_star", self.sums(grid)) if star else ("up_box", [self.flags])
            self.launch(name, grid, [*arrays, *steering, *sizes])
            result = {}
            for s in self.active:
                k = self.system(s)
                m = level.smoother[k].astype(float)
                y = m * r[s] + (level.transfer(k) @ below[s].ravel().astype(float)).reshape(self.shape)
                result[s] = y + m * (r[s] - level.apply(k, y))
            self.compare(out, result.__getitem__, name)
            if star:
                self.summed(name, {s: (r[s], result[s]) for s in self.active})

    def summed(self, what, pairs):
        """<r, z> of both signs: the sum relative to its summands, and the verdict on what is not positive."""
        scalars, flags = self.after
        assert not self.tickets.any(), f"{what} leaves tickets"
        for s, (r, z) in pairs.items():
            error = abs(scalars[s, RHO] - self.dot(r, z)) / np.abs(np.asarray(r, float) * z).sum()
            assert error <= self.tolerance, f"{what}: <r, z> off by {error:.1e}"
            positive = self.dot(r, z) > 0
            assert (flags[s, ACTIVE], flags[s, OUTCOME]) == ((1, -1) if positive else (0, 2)), (
                f"{what}: verdict {flags[s]}"
            )

    def check_coarsest(self):
        cells = 37
        r, z, grid = self.vectors((cells,)), self.empty((cells,)), (1, 1, self.batch)
        root = self.rng.standard_normal((self.matrices, cells, cells))
        inverse = (root @ root.transpose(0, 2, 1)).astype(self.dtype)
        inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
        for finest in (0, 1):
            steering = self.sums(grid)
            sizes = np.int32(cells), np.int32(self.matrices), np.int32(finest)
            self.launch("coarsest", grid, [r, inverse, z, *steering, *sizes])
            wanted = {s: inverse[self.system(s)].astype(float) @ r[s] for s in self.active}
            self.compare(z, wanted.__getitem__, "coarsest")
            if finest:
                self.summed("coarsest", {s: (r[s], wanted[s]) for s in self.active})
            else:
                assert (self.after[0] == self.scalars).all(), "coarsest decides where a finer level will"

    def check_true_residual(self):
        batch, shape = self.batch, self.shape
        x, b = self.rng.standard_normal((2, batch, *shape))
        out = np.full((batch, *shape), np.nan)
        grid, faces, reaction = self.grid(shape), [], self.rng.lognormal(0, 1, (self.matrices, *shape))
        for axis in range(self.dimension):
            counts = [n - (axis == d) for d, n in enumerate(shape)]
            faces.append(self.rng.lognormal(0, 2, (self.matrices, *counts)))
        passed = faces if self.dimension == 3 else [faces[0], None, faces[1]]
        norm2, tickets = np.full(batch, np.nan), np.zeros(batch, np.uint32)
        sums = [np.full(batch * grid[0] * grid[1], np.nan), tickets, norm2]
        sizes = [*self.sizes(shape), np.int32(self.chunk), np.int32(self.matrices)]
        self.launch("true_residual", grid, [x, b, *passed, reaction, out, *sums, *sizes])
        for s in range(batch):
            value = reaction[self.system(s)] * x[s]
            for axis, face in enumerate(faces):
                flow = face[self.system(s)] * np.diff(x[s], axis=axis)
                low = [slice(None)] * self.dimension
                high = list(low)
                low[axis], high[axis] = slice(None, -1), slice(1, None)
                value[tuple(low)] -= flow
                value[tuple(high)] += flow
            error = np.abs(out[s] - (b[s] - value)).max() / np.abs(value).max()
            assert error < 1e-14, f"true_residual off by {error:.1e}"
            assert abs(norm2[s] / self.dot(out[s], out[s]) - 1) < 1e-13, "true_residual: norm"


SHAPES = {
    2: (((11, 70), 3, 3, 3), ((6, 131), 1, 1, 2), ((9, 5), 3, 1, 4), ((1, 66), 1, 1, 3), ((7, 1), 2, 2, 5)),
    3: (((7, 5, 37), 2, 2, 2), ((4, 6, 8), 3, 1, 3), ((3, 1, 33), 1, 1, 1), ((5, 4, 2), 2, 2, 4)),
}
"""Cells, systems, coefficient sets, planes of a chunk: several tiles and chunks, edges inside of tiles, thin axes."""


def check_all(launcher, dimension, dtype, seed, cases=None):
    for case in cases or SHAPES[dimension]:
        GridChecks(launcher, dimension, dtype, seed).run(*case)
