"""Claim: learned weights make smoothed aggregation cheaper than two tuned scalars do, at the same cost a cycle.

Diffusion matrices that training has not seen: other meshes, coefficients and contrasts, up to forty times the unknowns
of the largest training mesh.  One core, processor time, rtol 1e-8 certified by the true residual, aggregates of
coefficient 1 for every sample of a mesh.

- *classical*: ω = s = 4/3, Jacobi's damping 2/3 for prolongator and smoother; *tuned*: the two numbers that were
  best on the training families (`--tune` searches again); *learned*: the shipped 98 weights; *V(2,2)*: classical, two
  sweeps; *tuned, larger*: a second pair, tried by hand on larger meshes, that beats the first one on most held-out
  ones; *by level*: two pairs, one for the finest level and one for the others, which an input of the network makes
  possible; the verdict is against whichever of the three needs the fewest iterations in the geometric mean;
- *GAMG*: PETSc's, with its defaults, in PETSc's CG with the true residual as its norm; its set-up is that of a second
  matrix in the same object.

Set-up is the numeric one, paid for every sample; the symbolic one is paid once a mesh and stands apart.  The guard's
table counts iterations, probes included, because those do not depend on what else the machine does.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from common import Report, number, parser, table
from learned_solvers import CONTENDERS, MEDIA, MOST, RTOL, SEED, TUNED, Gamg, Ours, guard_rows
from scipy.sparse import csr_array

from forebay.kernels.amg import AmgSolver, AmgWeights
from forebay.learners.amg_meshes import DiffusionMesh, Family, grid_mesh, p1_mesh, training_meshes

UNTUNED_TARGET, TUNED_TARGET, COLUMN_TARGET, SLOWER_TARGET = 0.85, 0.95, 0.4, 1.1
COLUMNS = 16
SCALARS = ("tuned", "tuned, larger", "by level")


@dataclass(frozen=True)
class Case:
    """A held-out mesh."""

    name: str
    make: Callable[[np.random.Generator], DiffusionMesh]
    media: tuple[tuple[Family, float], ...] = MEDIA
    timed: bool = False

    @cached_property
    def mesh(self) -> DiffusionMesh:
        return self.make(np.random.default_rng(SEED))


def cases(quick: bool) -> tuple[Case, ...]:
    if quick:
        return (
            Case("triangles", lambda rng: p1_mesh(4000, 2, rng), MEDIA[::3]),
            Case("tetrahedra", lambda rng: p1_mesh(6000, 3, rng), MEDIA[::3], timed=True),
        )
    some = MEDIA[::3]
    return (
        Case("triangles", lambda rng: p1_mesh(6000, 2, rng)),
        Case("triangles", lambda rng: p1_mesh(90_000, 2, rng), some, timed=True),
        Case("tetrahedra", lambda rng: p1_mesh(8000, 3, rng)),
        Case("tetrahedra", lambda rng: p1_mesh(29_800, 3, rng), some, timed=True),
        Case("tetrahedra", lambda rng: p1_mesh(97_400, 3, rng), some, timed=True),
        Case("5-point", lambda rng: grid_mesh(102, 2)),
        Case("7-point", lambda rng: grid_mesh(26, 3)),
    )


@dataclass(frozen=True)
class Run:
    """One sample by one contender; seconds of processor time."""

    iterations: int
    setup_s: float
    solve_s: float

    @property
    def seconds(self) -> float:
        return self.setup_s + self.solve_s


def run(solver: Any, matrix: csr_array, rhs: np.ndarray, repeats: int) -> Run:
    """Medians of set-up and solve."""
    setups, solves, iterations = [], [], 0
    for _ in range(repeats):
        started = time.thread_time()
        solver.setup(matrix.data)
        ready = time.thread_time()
        x, iterations = solver.solve(rhs)
        solves.append(time.thread_time() - ready)
        setups.append(ready - started)
        residual = np.linalg.norm(rhs - matrix @ x) / np.linalg.norm(rhs)
        if residual > 1.01 * RTOL:
            raise RuntimeError(f"{type(solver).__name__} claims {RTOL}, the true residual is {residual:.2e}")
    return Run(iterations, statistics.median(setups), statistics.median(solves))


def geometric(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


@dataclass(frozen=True)
class Compared:
    """All contenders on one sample."""

    case: Case
    medium: str
    runs: Mapping[str, Run]

    def against(self, other: str) -> float:
        """Iterations of the learned cycle over another one's."""
        return self.runs["learned"].iterations / self.runs[other].iterations


def compare(case: Case, quick: bool) -> Iterator[Compared]:
    """Every medium on the mesh; contenders take turns, backwards every second time."""
    mesh, rng = case.mesh, np.random.default_rng([SEED, case.mesh.unknowns])
    solvers: dict[str, Any] = {name: Ours(mesh.reference, name) for name in CONTENDERS}
    solvers["GAMG"] = Gamg(mesh.reference)
    repeats = (1 if quick else 3) if case.timed else 1
    for turn, (family, contrast) in enumerate(case.media):
        matrix, rhs = mesh.draw(family, contrast, rng), rng.standard_normal(mesh.unknowns)
        names = list(solvers) if turn % 2 == 0 else list(reversed(solvers))
        runs = {name: run(solvers[name], matrix, rhs, repeats) for name in names}
        yield Compared(case, f"{family} {contrast:.0e}".replace("e+0", "e"), runs)
    for solver in solvers.values():
        solver.destroy()


def columns_ratio(case: Case, repeats: int) -> float:
    """Time a right-hand side of sixteen at once over that of one alone, learned cycle, solve only."""
    mesh, rng = case.mesh, np.random.default_rng(SEED)
    solver = Ours(mesh.reference, "learned")
    solver.setup(mesh.draw("log_normal", 1e2, rng).data)
    rhs = rng.standard_normal((mesh.unknowns, COLUMNS))
    alone, together = [], []
    for _ in range(repeats):
        for values, found in ((rhs[:, 0].copy(), alone), (rhs, together)):
            started = time.thread_time()
            solver.solve(values)
            found.append(time.thread_time() - started)
    return statistics.median(together) / COLUMNS / statistics.median(alone)


def symbolic_seconds(case: Case) -> float:
    started = time.thread_time()
    Ours(case.mesh.reference, "classical")
    return time.thread_time() - started


def tune() -> tuple[float, float]:
    """ω and s with the fewest iterations, geometric mean, on the training meshes and families."""
    rng = np.random.default_rng(SEED)
    systems = [
        (mesh, mesh.draw(family, contrast, rng), rng.standard_normal(mesh.unknowns))
        for mesh in training_meshes(rng)
        for family, contrast in MEDIA
    ]

    def cost(omega: float, damping: float) -> float:
        weights, counts = AmgWeights.constant(omega, damping), []
        for mesh, group in itertools.groupby(systems, key=lambda system: system[0]):
            solver = AmgSolver(mesh.reference.indptr, mesh.reference.indices, mesh.reference.data, weights=weights)
            for _, matrix, rhs in group:
                solver.setup(matrix.data)
                counts.append(solver.solve(rhs, max_iterations=MOST)[1][0].iterations)
        return geometric(counts)

    pairs = itertools.product((1.0, 1.2, 1.4, 1.6, 1.8), (1.4, 1.5, 1.6, 1.7, 1.8, 1.9))
    return min(pairs, key=lambda pair: cost(*pair))


def say_iterations(report: Report, found: Sequence[Compared]) -> None:
    names = list(found[0].runs)
    rows = [
        [
            f"{one.case.name} {one.case.mesh.unknowns:,}",
            one.medium,
            *(one.runs[name].iterations for name in names),
            f"{one.against('classical'):.2f}",
            f"{one.against('tuned'):.2f}",
            f"{one.against('tuned, larger'):.2f}",
            f"{one.against('by level'):.2f}",
        ]
        for one in found
    ]
    report.say("\n## Iterations\n")
    report.say(
        table(["mesh, unknowns", "medium", *names, "learned / classical", "/ tuned", "/ larger", "/ by level"], rows)
    )
    losing = [
        f"{one.case.name} {one.case.mesh.unknowns:,} {one.medium}"
        for one in found
        if max(one.against(n) for n in SCALARS) > 1
    ]
    say_ratios(report, found)
    report.say(
        f"\nLearned needs more iterations than one of the tuned cycles on: {'; '.join(losing) or 'none of these'}."
    )


def say_ratios(report: Report, found: Sequence[Compared]) -> None:
    """Geometric means, white noise apart: it is where the weights gain."""
    parts = {
        "all": found,
        "white": [one for one in found if "white" in one.medium],
        "all others": [one for one in found if "white" not in one.medium],
    }
    names = ("classical", *SCALARS, "GAMG")
    cells = [
        [name, *(f"{geometric([one.against(n) for one in part]):.3f}" for n in names)] for name, part in parts.items()
    ]
    report.say("")
    report.say(table(["learned over", *names], cells))


def say_times(report: Report, found: Sequence[Compared]) -> list[float]:
    """Milliseconds; returns total of the learned cycle over GAMG's in three dimensions."""
    rows, ratios, names = [], [], list(found[0].runs)
    for case, group in itertools.groupby(found, key=lambda one: one.case):
        compared = list(group)
        if not case.timed:
            continue
        for one in compared:
            cells = [f"{number(1e3 * r.setup_s)} + {number(1e3 * r.solve_s)}" for r in map(one.runs.__getitem__, names)]
            ratio = one.runs["learned"].seconds / one.runs["GAMG"].seconds
            if case.name == "tetrahedra":
                ratios.append(ratio)
            rows.append([f"{case.name} {case.mesh.unknowns:,}", one.medium, *cells, f"{ratio:.2f}"])
    report.say("\n## Numeric set-up + solve, milliseconds\n")
    report.say(table(["mesh, unknowns", "medium", *names, "learned / GAMG"], rows))
    return ratios


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--tune", action="store_true", help="search the two scalars again, and stop")
    options = made.parse_args()
    if options.tune:
        sys.stdout.write(f"best ω, s on the training meshes: {tune()}; TUNED is {TUNED}\n")
        return 0
    report = Report("learned", options, ("numpy", "scipy", "numba"))
    chosen = cases(options.quick)
    found = [one for case in chosen for one in compare(case, options.quick)]
    say_iterations(report, found)
    totals = say_times(report, found)
    timed = [case for case in chosen if case.timed]
    columns = {case: columns_ratio(case, 1 if options.quick else 3) for case in timed}
    report.say("\n## Once a mesh, and many right-hand sides\n")
    cells = [
        [f"{case.name} {case.mesh.unknowns:,}", number(1e3 * symbolic_seconds(case)), f"{columns[case]:.2f}"]
        for case in timed
    ]
    report.say(table(["mesh, unknowns", "symbolic set-up, ms", f"a column of {COLUMNS} / one alone"], cells))
    rows = guard_rows(options.quick)
    report.say("\n## The guard: iterations of a stream over the classical cycle's, probes included\n")
    report.say(
        table(
            ["weights", "stream", "guarded", "not guarded", "serving at the end"],
            [[name, stream, f"{cost:.2f}", f"{trusted:.2f}", end] for name, stream, cost, trusted, end in rows],
        )
    )
    untuned, *scalars = (geometric([one.against(name) for one in found]) for name in ("classical", *SCALARS))
    tuned = max(scalars)  # against the best of them the ratio is largest
    slower = sum(cost > SLOWER_TARGET for _, _, cost, _, _ in rows)
    ok = (
        untuned <= UNTUNED_TARGET
        and tuned <= TUNED_TARGET
        and max(totals) <= 1
        and max(columns.values()) <= COLUMN_TARGET
        and not slower
    )
    figure = (
        f"{untuned:.2f}x the iterations of the untuned cycle, {tuned:.2f}x of the best tuned, "
        f"at worst {max(totals):.2f}x GAMG's time in 3D, "
        f"a column of {COLUMNS} {max(columns.values()):.2f}x, {slower} guarded streams slower"
    )
    target = f"<= {UNTUNED_TARGET}, <= {TUNED_TARGET}, <= 1, <= {COLUMN_TARGET}, 0"
    return report.finish(figure, target, ok=ok)


if __name__ == "__main__":
    sys.exit(main())
