"""Claim: DCDM takes far fewer iterations than CG and IC(0)-CG, as published, and loses to multigrid in time and bytes.

The deep conjugate direction method of Kaneda et al. (ICML 2023) on its own ground: pressure on 64 x 64 x 64 cells to
1e-4, trained on plain boxes alone, used with obstacles and a free surface.  One core, processor time; every residual is
checked in float64.  Bytes are floors: each array of a pass read or written once.  Losing cases: time, where even plain
CG wins; bytes, ten times those of multigrid; and closed walls: the network sees the residual and nothing of the
geometry, so it serves the walls that it was trained with.  `--train` trains a network anew in place of the shipped one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from common import Report, number, parser, table
from dcdm_cases import (
    RTOL,
    Case,
    Solved,
    cases,
    conjugate_gradients,
    deep_conjugate_directions,
    flexible_with_network,
    multigrid,
)

from forebay.kernels.dcdm.network import DirectionNetwork, bytes_per_cell
from forebay.kernels.dcdm.network_file import load_network
from forebay.kernels.dcdm.training import train

CELLS, QUICK, LARGE = 64, 32, 128
FEWER = 2.0
"""By how much DCDM has to undercut IC(0)-CG in iterations; published is a factor of several."""
CG = 17 * 8
"""Textbook CG with a seven-point stencil: four coefficients and thirteen accesses to vectors, float64."""
BYTES = {
    "CG": CG,
    # Two triangular solves: three off-diagonals, a diagonal, one vector in and one out each.
    "IC(0)-CG": CG + 2 * 6 * 8,
    # Two earlier directions: an inner product (2) and an update (3) with each, and the residual made anew (2).
    "DCDM": CG + 12 * 8 + bytes_per_cell(4),
    "flexible CG with f": CG + 2 * 8 + bytes_per_cell(4),
    # Directions and cycle in float32, iterate and residual in float64.  A V(2,2) cycle is four passes, 35 values a
    # cell (4 coefficients, smoother, 27/8 transfer weights, vectors); coarse cells, 1/7 of all, have 14 coefficients
    # and so 75.
    "multigrid-CG": 104 + 4 * (35 + 75 / 7),
}
NETWORKS = ("DCDM", "flexible CG with f")
COLUMNS = ("case", "solver", "iterations", "set-up ms", "solve ms", "of multigrid", "bytes/cell", "certified")

CERTIFIED = RTOL * (1 + 1e-6)

Solvers = dict[str, Callable[[Case], Solved]]
Found = tuple[Case, dict[str, Solved]]


def solvers_for(network: DirectionNetwork) -> Solvers:
    return {
        "CG": lambda case: conjugate_gradients(case, "none"),
        "IC(0)-CG": lambda case: conjugate_gradients(case, "icc"),
        "DCDM": lambda case: deep_conjugate_directions(case, network),
        "flexible CG with f": lambda case: flexible_with_network(case, network),
        "multigrid-CG": multigrid,
    }


def compare(chosen: Iterable[Case], solvers: Solvers) -> tuple[str, list[Found]]:
    """A table of every case and solver, and what stands in it."""
    rows, results = [], []
    for case in chosen:
        found = {name: _median(case, name, solve) for name, solve in solvers.items()}
        rows += [_row(case, name, one, found["multigrid-CG"]) for name, one in found.items()]
        results.append((case, found))
    return table(COLUMNS, rows), results


def _median(case: Case, name: str, solve: Callable[[Case], Solved]) -> Solved:
    """Of three solves in time; the network's take long enough to be timed once."""
    repeats = 1 if name in NETWORKS else 3
    return sorted((solve(case) for _ in range(repeats)), key=lambda one: one.total_s)[repeats // 2]


def _row(case: Case, name: str, one: Solved, best: Solved) -> tuple[object, ...]:
    certified = "yes" if one.residual <= CERTIFIED else f"no, {one.residual:.1e}"
    times = (f"{1e3 * one.set_up_s:,.0f}", f"{1e3 * one.solve_s:,.0f}", f"{number(one.total_s / best.total_s)} x")
    return (case.name, name, one.iterations, *times, f"{one.iterations * BYTES[name]:,.0f}", certified)


def network_for(report: Report) -> DirectionNetwork:
    if not report.options.train:
        return load_network()
    started = time.process_time()
    network = train()
    report.say(f"Trained anew in {time.process_time() - started:,.0f} s of processor time.\n")
    return network


def verdict(results: Sequence[Found]) -> tuple[str, bool]:
    """Least and largest advantages over the cases that have the walls of the training, and how the others end."""
    own = [found for case, found in results if case.familiar]
    fewer = [found["IC(0)-CG"].iterations / found["DCDM"].iterations for found in own]
    than_cg = [found["CG"].iterations / found["DCDM"].iterations for found in own]
    slower = [found["DCDM"].total_s / found["multigrid-CG"].total_s for found in own]
    traffic = [_bytes(found, "DCDM") / _bytes(found, "multigrid-CG") for found in own]
    others = [
        f"{found['DCDM'].iterations} to {found['IC(0)-CG'].iterations}" for case, found in results if not case.familiar
    ]
    ordered = all(found["IC(0)-CG"].iterations < found["CG"].iterations for found in own)
    certified = all(one.residual <= CERTIFIED for found in own for one in found.values())
    figure = (
        f"DCDM {_range(fewer)} x fewer iterations than IC(0)-CG ({', '.join(others)} with closed walls), "
        f"{_range(than_cg)} x fewer than CG; {_range(slower)} x the time of multigrid, {_range(traffic)} x its bytes"
    )
    return figure, ordered and certified and min(fewer) >= FEWER


def _bytes(found: dict[str, Solved], name: str) -> float:
    return found[name].iterations * BYTES[name]


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def main() -> int:
    making = parser(__doc__)
    making.add_argument("--train", action="store_true", help="train a network anew, three minutes on one core")
    report = Report("dcdm", making.parse_args(), ("torch", "numba", "dolfinx-solver-real"))
    torch.set_num_threads(1)
    solvers = solvers_for(network_for(report))
    # Compiling, and loading PETSc, before anything is measured.
    compare(cases(8), solvers)
    cells = QUICK if report.options.quick else CELLS
    text, results = compare(cases(cells), solvers)
    report.say(f"{cells} x {cells} x {cells} cells:\n\n{text}")
    if not report.options.quick:
        text, _ = compare([case for case in cases(LARGE) if case.name.startswith("ball")], solvers)
        report.say(f"\n{LARGE} x {LARGE} x {LARGE} cells, the largest training box having 32 x 32 x 32:\n\n{text}")
    figure, ok = verdict(results)
    return report.finish(figure, f"DCDM >= {FEWER:g} x fewer than IC(0)-CG, IC(0)-CG < CG", ok=ok)


if __name__ == "__main__":
    sys.exit(main())
