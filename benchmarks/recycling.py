"""Claim: carrying a subspace from sample to sample makes restarted Krylov solves several times cheaper.

One core.  Sequences of systems of five problems of the product, drawn and assembled as a run does it, by every
preconditioner at two tolerances: GMRES(40), LGMRES and BCGSL as PETSc compiles them, and GCRO-DR in its exact form
(40, 20) and its economical one (80, 40), the latter also after sorting.  Contenders take turns system by system; a time
is processor time of preconditioner set-up, solve and certification, and the mean of all systems, so that the building
up of a recycle space counts.  Every answer is certified by its true residual; systems that met the cap or broke down
are counted apart, and make the mean a lower bound, marked ">".

Judged are three figures: GMRES(40) over economical GCRO-DR, the geometric mean of all cells; the same for indefinite
2D Helmholtz with ILU, the worse tolerance; and for indefinite 3D Helmholtz, the best of GMRES(100) with multigrid or
ILU(1), direct solvers and BCGSL over the best GCRO-DR, at two sizes.  A cell where GMRES fails enters the mean with the
lower bound that its cap gives, one where GCRO-DR fails with the upper bound, one where both fail not at all.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common import Report, number, parser, table
from contenders import (
    PRECONDITIONERS,
    Limits,
    PetscContender,
    Preconditioner,
    RecyclingContender,
    ilu,
    require_one_thread,
)
from sequences import SystemSequence, of_problem
from solver_runs import DETAILS, FAILURES, Contender, Ratio, Runs, details, race

from forebay.solvers.krylov.gcrodr import Variant

TARGETS = {"all cells": 2.5, "2D Helmholtz with ILU": 30.0, "3D Helmholtz": 1.2}
GMRES, LGMRES, BCGSL = "GMRES(40)", "LGMRES(40)", "BCGSL"
EXACT, ECONOMICAL, SORTED = "exact", "economical", "sorted"
WORDS = {"spd": "symmetric positive definite", "symmetric": "symmetric", "general": "not symmetric"}


@dataclass(frozen=True)
class Case:
    """One problem of the large table."""

    problem: str
    options: Mapping[str, Any]
    systems: int

    @property
    def title(self) -> str:
        size = self.options["size"]
        return f"{self.problem} {' x '.join([str(size)] * (3 if self.problem.endswith('3d') else 2))}"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    cases: tuple[Case, ...]
    preconditioners: tuple[Preconditioner, ...]
    tolerances: tuple[float, ...]
    cap: int
    """Iterations a system; the product's default."""
    shares: Mapping[str, float]
    """How many of the systems a contender solves that is not the economical one."""
    slow: Mapping[str, float]
    """How many of the systems a cell with that preconditioner has."""
    rivals: tuple[Case, ...]
    """Sizes of 3D Helmholtz for the comparison with the best alternative."""


def cases(plane: int, cube: int, systems: int, systems_3d: int) -> tuple[Case, ...]:
    return (
        Case("darcy", {"size": plane, "coefficient": "log_normal"}, systems),
        Case("helmholtz", {"size": plane}, systems),
        Case("convection_diffusion", {"size": plane}, systems),
        Case("darcy3d", {"size": cube}, systems_3d),
        Case("helmholtz3d", {"size": cube}, systems_3d),
    )


FULL = Plan(
    cases(128, 32, 100, 20),
    PRECONDITIONERS,
    (1e-5, 1e-8),
    10_000,
    {GMRES: 0.2, LGMRES: 0.06, BCGSL: 0.06, EXACT: 0.15},
    {"none": 0.15, "jacobi": 0.3},
    tuple(Case("helmholtz3d", {"size": size}, 20) for size in (32, 48)),
)
QUICK = Plan(
    cases(64, 16, 16, 8),
    tuple(p for p in PRECONDITIONERS if p.name in ("jacobi", "ilu")),
    (1e-8,),
    2_000,
    {GMRES: 0.25, LGMRES: 0.25, BCGSL: 0.25, EXACT: 0.5},
    {"jacobi": 0.5},
    (Case("helmholtz3d", {"size": 24}, 8),),
)
FEWEST = 5
"""Systems that a contender solves at least."""


# -- the cells ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cell:
    """One problem, preconditioner and tolerance."""

    case: Case
    preconditioner: str
    rtol: float
    runs: Mapping[str, Runs]

    @property
    def gain(self) -> Ratio:
        """GMRES(40) over economical GCRO-DR."""
        return Ratio.of(self.runs[GMRES], self.runs[ECONOMICAL])

    @property
    def name(self) -> str:
        return f"{self.case.title}, {self.preconditioner}, {self.rtol:.0e}"

    @property
    def headline(self) -> bool:
        return self.case.problem == "helmholtz" and self.preconditioner == "ilu"


def contenders(sequence: SystemSequence, preconditioner: Preconditioner, limits: Limits) -> tuple[Contender, ...]:
    """The six of a cell."""
    system, seconds = sequence.system, sequence.sorting_seconds

    def recycling(name: str, restart: int, recycle: int, variant: Variant, *, in_order: bool = False) -> Contender:
        return RecyclingContender(
            system,
            preconditioner,
            limits,
            restart=restart,
            recycle=recycle,
            variant=variant,
            name=name,
            in_order=in_order,
            sorting=seconds if in_order else 0.0,
        )

    return (
        PetscContender(system, "gmres", preconditioner, limits, name=GMRES),
        PetscContender(system, "lgmres", preconditioner, limits, name=LGMRES),
        PetscContender(system, "bcgsl", preconditioner, limits, name=BCGSL),
        recycling(EXACT, 40, 20, "exact"),
        recycling(ECONOMICAL, 80, 40, "economical"),
        recycling(SORTED, 80, 40, "economical", in_order=True),
    )


def measure_cell(case: Case, sequence: SystemSequence, preconditioner: Preconditioner, rtol: float, plan: Plan) -> Cell:
    count = max(FEWEST, round(plan.slow.get(preconditioner.name, 1.0) * case.systems))
    cut = sequence.first(min(count, case.systems))
    racing = contenders(cut, preconditioner, Limits(rtol, plan.cap))
    systems = {c.name: min(len(cut), max(FEWEST, round(plan.shares.get(c.name, 1.0) * case.systems))) for c in racing}
    runs = race(cut, racing, systems)
    for contender in racing:
        contender.destroy()
    return Cell(case, preconditioner.name, rtol, runs)


def measure_case(report: Report, case: Case, plan: Plan) -> list[Cell]:
    """All cells of one problem, printed as one table for each tolerance."""
    sequence = of_problem(case.problem, case.options, case.systems)
    unfit = [p for p in plan.preconditioners if sequence.symmetry not in p.needs]
    report.say(f"\n## {case.title}, {case.systems} systems, {WORDS[sequence.symmetry]}\n")
    report.say(f"Sorting took {1e3 * sequence.sorting_seconds:.2f} ms a system, counted in its column.")
    for left_out in unfit:
        report.say(f"Without {left_out.name}: it needs a symmetric matrix.")
    cells = []
    for rtol in plan.tolerances:
        rows = []
        for preconditioner in (p for p in plan.preconditioners if p not in unfit):
            cell = measure_cell(case, sequence, preconditioner, rtol, plan)
            cells.append(cell)
            rows.append((preconditioner.name, *(r.milliseconds() for r in cell.runs.values()), cell.gain))
        columns = (f"ms a system, rtol {rtol:.0e}", GMRES, LGMRES, BCGSL, EXACT, ECONOMICAL, SORTED)
        report.say("\n" + table([*columns, "GMRES / economical"], rows))
    sequence.destroy()
    return cells


def say_details(report: Report, cells: Sequence[Cell]) -> None:
    report.say("\n## Every cell\n")
    report.say("Iterations and products with A are medians; the worst residual is that of the certified systems.\n")
    rows = [
        (f"{cell.name}: {name}", *rest)
        for cell in cells
        for name, *rest in details((name, runs) for name, runs in cell.runs.items())
    ]
    report.say(table(DETAILS, rows))


def say_losses(report: Report, cells: Sequence[Cell]) -> None:
    """Where recycling is not worth it: against GMRES, and against the fastest of the others."""
    lost = [cell for cell in cells if cell.gain.value < 1 or cell.gain.bound in ("<", "?")]
    report.say(f"\nEconomical GCRO-DR is slower than GMRES(40), or fails, in {len(lost)} of {len(cells)} cells:")
    for cell in lost:
        runs = cell.runs[ECONOMICAL]
        failed = f"; {runs.failures} of {len(runs.solved)} systems failed" if runs.failures else ""
        report.say(f"- {cell.name}: {cell.gain}{failed}")
    beaten = 0
    for cell in cells:
        others = [cell.runs[name] for name in (GMRES, LGMRES, BCGSL) if not cell.runs[name].failures]
        best = min((runs.mean for runs in others), default=float("inf"))
        beaten += best < min(cell.runs[name].mean for name in (EXACT, ECONOMICAL, SORTED))
    report.say(
        f"\nThe best of GMRES(40), LGMRES and BCGSL is faster than every GCRO-DR in {beaten} of {len(cells)} cells."
    )
    by_sorting = [Ratio.of(cell.runs[ECONOMICAL], cell.runs[SORTED]) for cell in cells]
    gains = [ratio.value for ratio in by_sorting if not ratio.bound]
    if gains:
        report.say(f"Sorting: {100 * (statistics.geometric_mean(gains) - 1):+.1f} % speed, geometric mean.")


def overall(cells: Sequence[Cell]) -> float:
    """Geometric mean of the gains; a cell where both fail says nothing."""
    return statistics.geometric_mean([cell.gain.value for cell in cells if cell.gain.bound != "?"])


def headline(cells: Sequence[Cell]) -> float:
    """The worse tolerance of 2D Helmholtz with ILU."""
    return min(known(cell.gain) for cell in cells if cell.headline)


def known(ratio: Ratio) -> float:
    """What a ratio is at least: nothing where GCRO-DR failed."""
    return 0.0 if ratio.bound in ("<", "?") else ratio.value


# -- the best alternative ----------------------------------------------------------------------------------------------

MUMPS, NATIVE, LONG = "direct, MUMPS LDL'", "direct, PETSc LU", "GMRES(100) + ILU(1)"
RIVAL_SHARES = {MUMPS: 0.0, NATIVE: 0.0, LONG: 0.25}
"""Of the systems; direct solvers take seconds for each at 48 x 48 x 48, always the same."""


def rivals(sequence: SystemSequence, limits: Limits) -> tuple[tuple[Contender, ...], tuple[Contender, ...]]:
    """The strongest alternatives for 3D Helmholtz, and GCRO-DR with some levels of fill and two shapes."""
    system = sequence.system
    gamg = Preconditioner("gamg", "gamg")
    mumps = Preconditioner("mumps", "cholesky", {"pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_14": 60})
    native = Preconditioner("petsc", "lu", {"pc_factor_mat_ordering_type": "nd"})
    others = (
        PetscContender(system, "gmres", gamg, limits, restart=100, name="GMRES(100) + GAMG"),
        PetscContender(system, "direct", mumps, limits, name=MUMPS),
        PetscContender(system, "direct", native, limits, name=NATIVE),
        *(PetscContender(system, "bcgsl", ilu(k), limits, name=f"BCGSL + ILU({k})") for k in (0, 1, 2)),
        PetscContender(system, "gmres", ilu(1), limits, restart=100, name=LONG),
    )
    ours = tuple(
        RecyclingContender(
            system,
            ilu(k),
            limits,
            restart=restart,
            recycle=recycle,
            variant="economical",
            name=f"GCRO-DR({restart}, {recycle}) + ILU({k})",
        )
        for k, restart, recycle in ((0, 60, 30), (1, 60, 30), (2, 60, 30), (1, 80, 40), (2, 80, 40))
    )
    return others, ours


def measure_rivals(report: Report, case: Case, plan: Plan) -> Ratio:
    """The fastest alternative over the fastest GCRO-DR, those that certify every system."""
    rtol = plan.tolerances[-1]
    sequence = of_problem(case.problem, case.options, case.systems)
    others, ours = rivals(sequence, Limits(rtol, plan.cap))
    racing = (*others, *ours)
    systems = {c.name: max(FEWEST, round(RIVAL_SHARES.get(c.name, 1.0) * case.systems)) for c in racing}
    runs = race(sequence, racing, systems)
    report.say(f"\n## {case.title}: the best alternative, rtol {rtol:.0e}\n")
    report.say(table(DETAILS, details(runs.items())))
    best_other, best_own = (best([runs[c.name] for c in group]) for group in (others, ours))
    for contender in racing:
        contender.destroy()
    sequence.destroy()
    return Ratio.of(best_other, best_own)


def best(runs: Sequence[Runs]) -> Runs:
    """Fastest of those without a failure; of all, if every one has failures."""
    return min(runs, key=lambda candidate: (candidate.failures > 0, candidate.mean))


def judge(report: Report, figures: Mapping[str, float], bounds: int, cells: int) -> int:
    text = ", ".join(f"{number(value)}x {name}" for name, value in figures.items())
    if bounds:
        text += f" ({bounds} of {cells} cells enter as bounds)"
    targets = ", ".join(f">= {target:g}x" for target in TARGETS.values())
    ok = all(value >= next(t for n, t in TARGETS.items() if name.startswith(n)) for name, value in figures.items())
    return report.finish(text, targets, ok=ok)


def run_benchmark(plan: Plan, report: Report) -> int:
    fewer = ", ".join(f"{name} {100 * share:.0f} %" for name, share in plan.shares.items())
    slow = ", ".join(f"{name} {100 * share:.0f} %" for name, share in plan.slow.items())
    report.say(
        f"At most {plan.cap} iterations a system.  To save time, some contenders solve fewer systems, spread evenly "
        f"({fewer}; at least {FEWEST}), and cells of slow preconditioners have fewer ({slow}); a contender stops when "
        f"its first {FAILURES} systems all fail.  The table of every cell says how many it solved."
    )
    cells = [cell for case in plan.cases for cell in measure_case(report, case, plan)]
    ratios = {case.title: measure_rivals(report, case, plan) for case in plan.rivals}
    say_details(report, cells)
    say_losses(report, cells)
    figures = {"all cells": overall(cells), "2D Helmholtz with ILU": headline(cells)}
    for title, ratio in ratios.items():
        figures[f"3D Helmholtz {title.split()[-1]}^3 over the best alternative"] = known(ratio)
        if ratio.bound:
            report.say(f"\n{title}: every solver of a side failed on some system; the ratio is {ratio}.")
    return judge(report, figures, sum(cell.gain.bound != "" for cell in cells), len(cells))


def shortened(plan: Plan, systems: int) -> Plan:
    """Sequences of at most so many systems, a fifth of it in three dimensions."""

    def cut(case: Case) -> Case:
        return replace(
            case, systems=min(case.systems, max(FEWEST, systems // (5 if case.problem.endswith("3d") else 1)))
        )

    return replace(plan, cases=tuple(map(cut, plan.cases)), rivals=tuple(map(cut, plan.rivals)))


def main() -> int:
    choices = parser(__doc__ or "")
    choices.add_argument("--systems", type=int, default=100, help="length of the 2D sequences; default 100")
    options = choices.parse_args()
    require_one_thread()
    report = Report("recycling", options, ("dolfinx-solver-real", "numpy", "scipy"))
    return run_benchmark(shortened(QUICK if options.quick else FULL, options.systems), report)


if __name__ == "__main__":
    sys.exit(main())
