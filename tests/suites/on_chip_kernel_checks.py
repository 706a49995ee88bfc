"""The kernels of csrc/on_chip.cu against dense numpy: whole solves, and solves cut off after three iterations."""

import numpy as np
from suites.grid_kernel_checks import Level, links, shifted

from forebay.kernels.on_chip_plan import Limits, plan_of

THREADS = 64
SHAPES = {2: (14, 19), 3: (7, 9, 7)}
"""Three levels each; those between differ in the number of cells along x and y."""
SYSTEMS = 4


def plan_with(dimension, cluster, direction_on_chip):
    """The plan of the smallest device that arranges a system like this."""
    for kib in range(1, 400):
        limits = Limits(2560 + 256 * kib, 3, cluster > 1)
        plan = plan_of(SHAPES[dimension], limits, multigrid=True, threads=THREADS)
        if plan is not None and (plan.cluster, plan.direction_on_chip) == (cluster, direction_on_chip):
            return plan
    raise AssertionError(f"no device arranges {SHAPES[dimension]} in {cluster} blocks, direction {direction_on_chip}")


class System:
    """One random operator with a Galerkin hierarchy over random interpolation, dense and in the layout of kernels."""

    def __init__(self, rng, shape):
        self.reaction = rng.lognormal(-2, 1, shape)
        self.faces = [rng.lognormal(0, 1, [n - (axis == d) for d, n in enumerate(shape)]) for axis in range(len(shape))]
        level = Level.random(rng, shape, 1, np.float32, star=True)
        for offset, k in zip(links(len(shape), star=True), range(len(shape)), strict=True):
            level.off[0, k][shifted(shape, offset)[0]] = -self.faces[offset.index(1)]
        self.reaction = self.reaction.astype(np.float32).astype(float)
        self.faces = [face.astype(np.float32).astype(float) for face in self.faces]
        level.diagonal[0] = 0
        level.diagonal[0] = self.reaction - level.apply(0, np.ones(shape))
        self.levels, self.matrices, self.transfers = [], [], []
        while True:
            matrix = dense(level)
            self.matrices.append(matrix)
            if np.prod(level.shape) <= 64:
                break
            level.smoother[0] = (1.6 / np.abs(matrix).sum(1)).reshape(level.shape)
            self.levels.append(level)
            self.transfers.append(level.transfer(0))
            level = galerkin(rng, self.transfers[-1].T @ matrix @ self.transfers[-1], level.coarse)
        self.inverse = np.linalg.inv(matrix).astype(np.float32)

    def cycle(self, r, depth=0):
        if depth == len(self.levels):
            return self.inverse @ r
        a, p, m = self.matrices[depth], self.transfers[depth], self.levels[depth].smoother[0].ravel().astype(float)
        z = m * r
        z = z + p @ self.cycle(p.T @ (r - a @ z), depth + 1)
        return z + m * (r - a @ z)

    def iterate(self, b, count):
        x, r, p, rho = np.zeros_like(b), b.copy(), np.zeros_like(b), 1.0
        for _ in range(count):
            z = self.cycle(r)
            p, rho = z + (r @ z / rho if p.any() else 0) * p, r @ z
            q = self.matrices[0] @ p
            x, r = x + rho / (p @ q) * p, r - rho / (p @ q) * q
        return x


def dense(level):
    cells = int(np.prod(level.shape))
    return np.stack([level.apply(0, unit.reshape(level.shape)).ravel() for unit in np.eye(cells)], axis=1)


def galerkin(rng, matrix, shape):
    """A dense operator of neighbours only, as a level with interpolation of its own."""
    level = Level.random(rng, shape, 1, np.float32, star=False)
    number = np.arange(len(matrix)).reshape(shape)
    level.diagonal[0] = matrix.diagonal().reshape(shape)
    for k, offset in enumerate(links(len(shape), star=False)):
        here, there = shifted(shape, offset)
        level.off[0, k][here] = matrix[number[here], number[there]]
    return level


class OnChipChecks:
    def __init__(self, launcher, plan, seed):
        self.launcher, self.plan, self.rng = launcher, plan, np.random.default_rng(seed)
        self.systems = [System(self.rng, plan.shape) for _ in range(SYSTEMS)]
        self.b = self.rng.standard_normal((SYSTEMS, *plan.shape)).astype(np.float32)
        self.b /= np.linalg.norm(self.b.reshape(SYSTEMS, -1), axis=1).reshape(-1, *[1] * len(plan.shape))

    def stacked(self, arrays):
        return np.ascontiguousarray(np.stack(arrays), np.float32)

    def arrays(self):
        """Four arrays a level, all systems in each."""
        rows = []
        for depth in range(len(self.systems[0].levels)):
            levels = [one.levels[depth] for one in self.systems]
            first = [s.reaction for s in self.systems] if depth == 0 else [level.diagonal[0] for level in levels]
            others = [[getattr(level, name)[0] for level in levels] for name in ("off", "smoother", "prolong")]
            rows.append([self.stacked(one) for one in (first, *others)])
        return [*rows, [self.stacked([s.inverse for s in self.systems])] * 4]

    def solve(self, members, target, budget, kind=2):
        kept = self.arrays()
        addresses = np.array([[array.ctypes.data for array in row] for row in kept])
        x = np.full(self.b.shape, np.nan, np.float32)
        iterations, status = np.zeros(SYSTEMS, np.int32), np.full(SYSTEMS, -1, np.int32)
        blocks, cells = 2, int(np.prod(self.plan.shape))
        direction = None if self.plan.direction_on_chip else np.full((blocks, cells), np.nan, np.float32)
        args = [self.plan.rows(), addresses, np.int32(len(kept)), np.int32(kind), np.int32(0)]
        args += [np.array(members, np.int32), np.int32(len(members)), np.zeros(1, np.int32), self.b, x, direction]
        args += [np.full(SYSTEMS, target), np.array(budget, np.int32), iterations, status]
        grid = (blocks * self.plan.cluster,)
        shared = self.plan.shared_bytes
        self.launcher.launch("pcg_on_chip", grid, (THREADS,), shared, args, cluster=self.plan.cluster)
        return x, iterations, status

    def close(self, got, wanted, what, tolerance):
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error <= tolerance, f"{what}: off by {error:.1e}"

    def check_iterations(self):
        """Systems 0 and 2 for three and two iterations; 1 and 3 are left alone."""
        x, iterations, status = self.solve([2, 0], 0.0, [3, 9, 2, 9])
        assert iterations.tolist() == [3, 0, 2, 0], f"pcg_on_chip: iterations {iterations}"
        assert status.tolist() == [1, -1, 1, -1], f"pcg_on_chip: outcomes {status}"
        assert np.isnan(x[[1, 3]]).all(), "pcg_on_chip touches systems that it was not given"
        for k, count in ((0, 3), (2, 2)):
            wanted = self.systems[k].iterate(self.b[k].ravel().astype(float), count)
            self.close(x[k].ravel(), wanted, f"pcg_on_chip, system {k} after {count} iterations", 2e-5)

    def check_convergence(self):
        x, iterations, status = self.solve([0, 1, 2, 3], 1e-4, [60] * 4)
        assert (status == 0).all(), f"pcg_on_chip: outcomes {status} after {iterations} iterations"
        for k, one in enumerate(self.systems):
            left = self.b[k].ravel() - one.matrices[0] @ x[k].ravel().astype(float)
            assert np.linalg.norm(left) < 1.1e-4, f"pcg_on_chip: residual {np.linalg.norm(left):.1e} of system {k}"

    def check_correction(self):
        shape, members = self.plan.shape, [3, 1, 0]
        faces = [np.stack([one.faces[axis] for one in self.systems]) for axis in range(len(shape))]
        reaction = np.stack([one.reaction for one in self.systems])
        b, u = self.rng.standard_normal((2, SYSTEMS, *shape))
        e, before = self.rng.standard_normal((SYSTEMS, *shape)).astype(np.float32), u.copy()
        scale, size = self.rng.uniform(1, 2, SYSTEMS), self.rng.uniform(1, 2, SYSTEMS)
        scale[1] = 0
        r, norm = np.full(u.shape, np.nan, np.float32), np.full(SYSTEMS, np.nan)
        sizes = [np.int32(n) for n in self.plan.table[0][:3]]
        args = [*faces, *[None] * (3 - len(faces)), reaction, *sizes, np.int32(0), np.array(members, np.int32), b, u, e]
        self.launcher.launch("correct_and_measure", (3,), (THREADS,), 0, [*args, scale, size, r, norm])
        assert (u[2] == before[2]).all(), "correct_and_measure touches a system that it was not given"
        for k in members:
            wanted = before[k] + scale[k] * e[k].astype(float)
            self.close(u[k], wanted, "correct_and_measure: u", 1e-15)
            left = b[k].ravel() - exact(self.systems[k]) @ wanted.ravel()
            self.close(r[k].ravel(), left / size[k], "correct_and_measure: r", 1e-6)
            assert abs(norm[k] / np.linalg.norm(left) - 1) < 1e-13, "correct_and_measure: norm"


def exact(system):
    """The operator from its faces and reaction, dense."""
    shape = system.reaction.shape
    number, matrix = np.arange(system.reaction.size).reshape(shape), np.diag(system.reaction.ravel())
    for axis, face in enumerate(system.faces):
        low = np.take(number, range(shape[axis] - 1), axis).ravel()
        high = np.take(number, range(1, shape[axis]), axis).ravel()
        for i, j in ((low, high), (high, low)):
            matrix[i, i] += face.ravel()
            matrix[i, j] -= face.ravel()
    return matrix


def check_all(launcher, plan, seed):
    checks = OnChipChecks(launcher, plan, seed)
    checks.check_iterations()
    checks.check_convergence()
    checks.check_correction()
