"""Claim: reduced models of the reference code's academic cube meet that code's own thresholds, on one process and two.

A cube of 1 m in 6 x 6 x 6 hexahedra (343 nodes), E 200 GPa, ν 0.3, α 2e-5, Norton K 300 n 30, kinematic hardening C 1e5
D 1000, R₀ 10 MPa, cycles of 2 s in 10 increments, modes to 1e-6, cubature to 1e-5; u_x is held at x = 0, u_y along an
edge, u_z at a corner.  Loads are ours, after the reference's description of its own: in each cycle the face x = 1 m is
pulled by 100 MPa, reached after 0.1 s and held; the body turns about an axis along z through (3.5, -20) m, 10 rad/s
being reached after 1 s and held (1e-8 t/mm³: some 20 MPa); temperature 20 °C + 380 °C w(t) exp(-(r / 0.5 m)²) about
the centre, w from 0 to 1 at 1 s and back to 0.  Plastic strain p creeps on from cycle to cycle.

Errors are relative L2 over the cube at one step, and the largest over the steps: a field beside itself, or beside 1 %
of its largest norm where it is smaller still (the first p is 6e-8; the reference takes absolute errors there).  p is
reconstructed by gappy POD; "replayed" is the law at all points along the reduced displacements.

- reproduction: the one cycle that the model was trained on, as in the reference; longer trainings are shown;
- extrapolation: trained on the first four cycles, judged on the next two.  The reference's test of this name compares
  the snapshots that it was trained on.  Gappy POD needs the four: "best" is the error of the true p projected on all
  modes of the training's p;
- parallel: everything once more on two MPI ranks; reduced displacements of the trained cycles beside the full ones and
  beside the reduced ones of one process, both of one process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from academic_cube_ranks import CELLS
from common import Report, arguments, table
from rom_cases import one_thread

from forebay.cluster.mpi import run_mpi

DISPLACEMENT, P, EXTRAPOLATED_P, PARALLEL = 1e-4, 1e-4, 1e-3, 1e-3
FLOOR = 0.01
"""Of a field's largest norm over the steps."""
TIMEOUT_S = 900.0
COLUMNS = ("increments, trained, judged", "n", "q", "m", "u", "p", "p replayed", "p best", "m, 2 ranks", "u, 2 ranks")


@dataclass(frozen=True)
class Case:
    """What is simulated and judged; numbers of cycles in `trained` increase."""

    increments: int = 10
    cycles: int = 6
    trained: tuple[int, ...] = (1, 2, 3, 4)
    """Cycles of each training: the first one is judged by reproduction, the last one by extrapolation."""
    cells: int = CELLS


FULL = (Case(), Case(increments=20, trained=(1, 4)))
QUICK = (Case(trained=(1, 4)),)


@dataclass(frozen=True)
class Solved:
    """What `academic_cube_ranks.offline` gave."""

    fields: Mapping[str, np.ndarray]
    """A row for every degree of freedom or point, a column for every time."""
    sizes: list[dict[str, float]]


@dataclass(frozen=True)
class Figures:
    """Largest errors of what is judged."""

    displacement: float
    p: float
    extrapolated_p: float
    parallel_displacement: float


TARGETS = Figures(DISPLACEMENT, P, EXTRAPOLATED_P, PARALLEL)


def solve(case: Case, ranks: int) -> Solved:
    """The whole case on so many processes."""
    function = f"{Path(__file__).with_name('academic_cube_ranks.py')}:offline"
    found = run_mpi(function, {}, asdict(case), ranks=ranks, timeout_s=TIMEOUT_S)
    return Solved(found.arrays, found.value)


def errors(weights: np.ndarray, values: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Relative L2 error (s,) of fields (rows, s + 1) at every step, the initial state left out."""
    size = np.sqrt(weights @ true[:, 1:] ** 2)
    missed = np.sqrt(weights @ (values - true)[:, 1:] ** 2)
    return np.asarray(missed / np.maximum(size, FLOOR * size.max()))


def projected(weights: np.ndarray, values: np.ndarray, steps: int) -> np.ndarray:
    """Fields (rows, s + 1) on the space that those of the first steps span, the best that any modes of them give."""
    root = np.sqrt(weights)[:, None]
    modes, sizes, _ = np.linalg.svd(root * values[:, 1 : steps + 1], full_matrices=False)
    modes = modes[:, sizes > 1e-12 * sizes[0]]
    return np.asarray(modes @ (modes.T @ (root * values)) / root)


def errors_of(one: Solved, two: Solved, trained: int, steps: int) -> np.ndarray:
    """Of one training at every step, (s, 5): u, p, p replayed, p projected, u on two ranks."""
    fields = one.fields
    of_u = [solved.fields[f"u{trained}"] for solved in (one, two)]
    of_p = [fields[f"p{trained}"], fields[f"replayed{trained}"], projected(fields["points"], fields["p"], steps)]
    u_errors = [errors(fields["dofs"], u, fields["u"]) for u in of_u]
    p_errors = [errors(fields["points"], p, fields["p"]) for p in of_p]
    return np.column_stack([u_errors[0], *p_errors, u_errors[1]])


def rows_of(case: Case, one: Solved, two: Solved, number: int) -> list[list[str]]:
    """Of training `number`: a row for the cycles trained on, and one for each further cycle."""
    trained = case.trained[number]
    steps = trained * case.increments
    found = errors_of(one, two, trained, steps)
    here, there = one.sizes[number], two.sizes[number]
    rows = []
    for cycle in range(trained, case.cycles + 1):
        new = cycle > trained
        part = found[(cycle - 1) * case.increments : cycle * case.increments] if new else found[:steps]
        cells = [f"{error:.1e}" for error in part.max(axis=0)]
        sizes = ["", "", ""] if new else [f"{here[name]:.0f}" for name in "nqm"]
        label = f"{case.increments}, {trained}, {cycle if new else 'those'}"
        best, points = (cells[3], "") if new else ("", f"{there['m']:.0f}")
        rows.append([label, *sizes, *cells[:3], best, points, cells[4]])
    return rows


def figures_of(case: Case, one: Solved, two: Solved) -> Figures:
    """What is judged; `parallel_displacement` is the larger of both comparisons over all trainings."""
    fields, first, last = one.fields, case.trained[0], case.trained[-1]
    reproduced = slice(0, first * case.increments)
    parallel = [
        errors(fields["dofs"], two.fields[f"u{trained}"], other)[: trained * case.increments].max()
        for trained in case.trained
        for other in (fields["u"], fields[f"u{trained}"])
    ]
    return Figures(
        float(errors(fields["dofs"], fields[f"u{first}"], fields["u"])[reproduced].max()),
        float(errors(fields["points"], fields[f"p{first}"], fields["p"])[reproduced].max()),
        float(errors(fields["points"], fields[f"p{last}"], fields["p"])[last * case.increments :].max()),
        float(max(parallel)),
    )


def measure(report: Report, cases: Sequence[Case]) -> Figures:
    """The table of all cases, and the worst of what is judged."""
    rows, found, residuals = [], [], []
    for case in cases:
        one, two = solve(case, 1), solve(case, 2)
        rows += [row for number in range(len(case.trained)) for row in rows_of(case, one, two, number)]
        residuals += [size["residual"] for solved in (one, two) for size in solved.sizes]
        found.append(asdict(figures_of(case, one, two)))
    report.say(table(COLUMNS, rows))
    report.say(
        "\nIncrements of a cycle, cycles of the training, cycle that is judged.  n modes of u, q of p; m points, those "
        "at weight 0 included, of the mesh's 8 a hexahedron.  The cubature's residuals are at most "
        f"{max(residuals):.1e}."
    )
    return Figures(**{name: max(figures[name] for figures in found) for name in found[0]})


def main() -> int:
    options = arguments(__doc__ or "")
    one_thread()
    report = Report("academic_cube", options, ("numpy", "numba", "scipy", "dolfinx-solver-real"))
    found, targets = asdict(measure(report, QUICK if options.quick else FULL)), asdict(TARGETS)
    figure = ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in found.items())
    target = ", ".join(f"<= {value:.0e}" for value in targets.values())
    return report.finish(figure, target, ok=all(found[name] <= targets[name] for name in found))


if __name__ == "__main__":
    sys.exit(main())
