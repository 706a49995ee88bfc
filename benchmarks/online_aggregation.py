"""Claim: weights trained while a study solves take no more iterations than those that are shipped.

What `learned = "online"` does with `cg` and `amg`, without the run around it: the study's own matrices stream by, the
trainer makes its steps and publishes what its trial lets pass, and samples that come later are solved with the latest
version, the shipped weights and the classical cycle, all trusted without a guard, from their own right-hand sides to
1e-8.  Iterations are counted in fractions, k ln(1e-8) / ln(residual), since one of twelve is 8 %; seconds are the
trainer's, of which a run spends a fifth of its solving time.

Darcy media on grids and meshes are what the shipped weights were trained on.  A permeability fifty times larger along
x, and a reaction of random strength beside the diffusion, are not.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import Report, arguments, number, table
from scipy.sparse import csr_array

from forebay.kernels.amg import CLASSICAL, AmgSolver, AmgWeights
from forebay.kernels.weight_file import latest_version
from forebay.learners.online_aggregation import STEPS_A_VERSION, OnlineAggregation
from forebay.pipeline.sampling import Design, draw_parameters, sample_generator
from forebay.solvers.krylov.grid_pc import graph_laplacian
from forebay.solvers.problems import load_problem

SEED = 20_261
RTOL, MOST = 1e-8, 2000
BATCH, HELD_OUT, SAMPLES = 4, 16, 1000
TARGET = 1.0
"""What training gains depends on the medium; that it never loses is the trial's promise, on samples it has not seen."""
System = tuple[np.ndarray, np.ndarray]
"""Entries (nnz,) and right-hand side (n,)."""
Change = Callable[[csr_array, np.random.Generator], np.ndarray]
"""The entries of a medium that the shipped weights do not know, from those of a Darcy matrix."""


def stretched(matrix: csr_array, rng: np.random.Generator) -> np.ndarray:
    """Couplings along y divided by fifty."""
    side = math.isqrt(matrix.shape[0])
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    across = np.abs(rows - matrix.indices) == side
    values, diagonal = matrix.data.copy(), rows == matrix.indices
    removed = np.where(across, 0.98 * values, 0.0)
    values -= removed
    values[diagonal] += np.bincount(rows, removed)
    return values


def reacting(matrix: csr_array, rng: np.random.Generator) -> np.ndarray:
    """A reaction that damps over 3 to 10 cells, where the permeability is 1."""
    diagonal = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) == matrix.indices
    return matrix.data + np.where(diagonal, 10 ** rng.uniform(-2, -1), 0.0)


@dataclass(frozen=True)
class Case:
    """A study's stream of systems."""

    name: str
    problem: str
    options: dict[str, Any]
    change: Change | None = None

    def stream(self, problem: Any) -> Iterator[System]:
        indptr, indices = problem.pattern()
        design = Design("random", SEED, "train", SAMPLES, len(problem.schema.parameters))
        values, rhs = np.zeros(len(indices)), np.zeros(len(indptr) - 1)
        for sample in range(SAMPLES):
            parameters, rng = draw_parameters(problem.schema, design, sample), sample_generator(SEED, "train", sample)
            problem.assemble({**problem.draw(parameters, rng), "parameters": parameters}, values, rhs)
            changed = self.change(csr_array((values, indices, indptr)), rng) if self.change else values.copy()
            yield changed, rhs.copy()


def cases(quick: bool) -> tuple[Case, ...]:
    size = 48 if quick else 96
    log_normal = {"size": size, "coefficient": "log_normal"}
    known = Case(f"Darcy {size} x {size}, log-normal", "darcy", log_normal)
    new = Case(f"stretched {size} x {size}", "darcy", log_normal, stretched)
    if quick:
        return known, new
    return (
        known,
        Case("Darcy 96 x 96, two values", "darcy", {"size": size}),
        Case("Darcy 192 x 192, log-normal", "darcy", {**log_normal, "size": 192}),
        Case("Darcy 20 x 20 x 20", "darcy3d", {"size": 20}),
        Case("Darcy on triangles", "darcy_fem", {"element_size": 0.02}),
        new,
        Case("reacting 96 x 96", "darcy", log_normal, reacting),
    )


@dataclass(frozen=True)
class Found:
    """Of one case; iterations are means over the held-out samples, ratios geometric ones."""

    case: Case
    unknowns: int
    classical: float
    shipped: float
    online: float
    ratio: float
    versions: int
    steps: int
    seconds: float


def iterations(solver: AmgSolver, weights: AmgWeights, systems: Sequence[System]) -> np.ndarray:
    """Of every system, in fractions."""
    solver.use(weights)
    found = []
    for values, rhs in systems:
        solver.setup(values)
        _, (record,) = solver.solve(rhs, rtol=RTOL, max_iterations=MOST)
        if not record.valid:
            raise RuntimeError(f"a system of the benchmark was not solved: {record}")
        found.append(record.iterations * math.log(RTOL) / math.log(record.residual))
    return np.array(found)


def study(case: Case, versions: int) -> Found:
    """Train until as many versions were on trial, then compare."""
    problem: Any = load_problem(case.problem, case.options, folder=Path())
    indptr, indices = problem.pattern()
    reference = csr_array((graph_laplacian(indptr, indices, block=1)[1], indices, indptr))
    systems = case.stream(problem)
    with tempfile.TemporaryDirectory(prefix="forebay-online-") as folder:
        trainer, seconds = OnlineAggregation(Path(folder), reference, seed=SEED), 0.0
        while trainer.steps < versions * STEPS_A_VERSION:
            values = np.stack([values for values, _ in islice(systems, BATCH)])
            started = time.perf_counter()
            trainer.learn(values)
            seconds += time.perf_counter() - started
        latest = latest_version(Path(folder))
        trained = AmgWeights.load(latest[1]) if latest else AmgWeights.shipped()
    held_out = list(islice(systems, HELD_OUT))
    solver = AmgSolver(indptr, indices, reference.data, guard=False)
    counts = [iterations(solver, weights, held_out) for weights in (CLASSICAL, AmgWeights.shipped(), trained)]
    ratio = math.exp(statistics.fmean(np.log(counts[2] / counts[1])))
    means = (float(count.mean()) for count in counts)
    return Found(case, len(indptr) - 1, *means, ratio, latest[0] if latest else 0, trainer.steps, seconds)


def main() -> int:
    options = arguments(__doc__ or "")
    report = Report("online_aggregation", options, ("numpy", "scipy", "numba", "torch"))
    found = [study(case, 2 if options.quick else 8) for case in cases(options.quick)]
    heads = ["stream", "unknowns", "classical", "shipped", "online", "online / shipped", "versions", "steps", "seconds"]
    cells = [
        [
            one.case.name,
            f"{one.unknowns:,}",
            *(number(count) for count in (one.classical, one.shipped, one.online)),
            f"{one.ratio:.3f}",
            one.versions,
            one.steps,
            number(one.seconds),
        ]
        for one in found
    ]
    report.say("\n## Iterations\n")
    report.say(table(heads, cells))
    ratios = [one.ratio for one in found]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    figure = (
        f"{max(ratios):.3f} times the shipped weights' iterations at worst, {mean:.3f} mean, {min(ratios):.3f} best"
    )
    return report.finish(figure, f"<= {TARGET:g} at worst", ok=max(ratios) <= TARGET)


if __name__ == "__main__":
    sys.exit(main())
