"""Claim: `method = "auto"` costs hardly more than the method one would have fixed, had one known beforehand which.

For each problem and size, one stream of systems goes to `auto` and, one by one, to every method that `auto` chooses
from, to some that it leaves out, and to every method that fits all problems.  Total seconds of solving, `auto`'s
learning and all set-up included, drawing and assembling not; processor time of one thread.  The contenders take turns
every 20 samples.  Methods far behind are stopped and extrapolated ("~"); "≥" where samples were given up uncertified,
which costs more in truth.
Three comparisons: with the best fixed method of each problem in hindsight; on 2D Darcy with GMRES(40), plain and with
ILU, measured on a part of the samples; over all problems together with the best single method for all of them.  A
method that leaves any sample uncertified is not the best of anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common import Report, arguments, number, table
from race import Contender, race

from forebay.pipeline.sampling import Design, draw_parameters, sample_generator
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.arms import Automatic, MatrixFacts, facts_of
from forebay.solvers.assemble import System, system_of
from forebay.solvers.methods import Method
from forebay.solvers.portfolio import Context, Portfolio
from forebay.solvers.problems.convection_diffusion import ConvectionDiffusion
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.darcy3d import Darcy3D
from forebay.solvers.problems.darcy_fem import DarcyFem
from forebay.solvers.problems.elasticity import Elasticity
from forebay.solvers.problems.helmholtz import Helmholtz
from forebay.solvers.problems.helmholtz3d import Helmholtz3D
from forebay.solvers.problems.poisson import Poisson
from forebay.solvers.single import make_single

HINDSIGHT, PLAIN, ILU, SINGLE = 1.05, 100.0, 7.0, 1.3
"""Targets: over the best fixed method; times faster than GMRES(40), GMRES(40) + ILU, the best single method for all."""
SEED = 20_117
CHUNK = 20
PATIENCE_S, QUICK_PATIENCE_S = 60.0, 2.0
"""See `race.PROBE`."""
REFERENCE_STRIDE = 25
"""The two GMRES(40) solve every so manyeth sample."""
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

PLAIN_GMRES = Method("gmres", preconditioner="none", restart=40)
ILU_GMRES = Method("gmres", preconditioner="ilu", restart=40)
EVERYWHERE = (
    Method("direct", factor="mumps"),
    Method("direct", factor="petsc"),
    Method("gmres", preconditioner="ilu", restart=100),
    Method("gmres", preconditioner="gamg"),
    Method("gmres", preconditioner="gamg", restart=100),
    Method("bcgsl", preconditioner="ilu"),
    Method("gcrodr", preconditioner="ilu"),
    Method("gcrodr", preconditioner="ilu", restart=80, recycle=40),
)
"""Methods for any matrix; cg and icc are not among them."""
RIVALS: Mapping[Symmetry, tuple[Method, ...]] = {
    "spd": (
        Method("cg", preconditioner="gamg"),
        Method("cg", preconditioner="eisenstat", omega=1.6),
        Method("cg", preconditioner="eisenstat", omega=1.9),
        Method("cg", preconditioner="icc"),
        Method("deflated_cg", preconditioner="icc"),
    ),
    "symmetric": (Method("gmres", preconditioner="lu", reuse="preconditioner"),),
    "general": (Method("gmres", preconditioner="lu", reuse="preconditioner"),),
}
"""Measured whether `auto` has them among its arms or not, lest a short list of arms make its task look easy."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    problem: Any
    samples: int = 500
    gmres: bool = False
    """Compared with GMRES(40) too."""


def cases(quick: bool) -> tuple[Case, ...]:
    if quick:
        return (
            Case("darcy 64, two-valued", Darcy(size=64), 40, gmres=True),
            Case("poisson 64", Poisson(size=64), 40),
            Case("helmholtz 64", Helmholtz(size=64), 40),
            Case("convection_diffusion 64", ConvectionDiffusion(size=64), 40),
        )
    return (
        Case("darcy 64, two-valued", Darcy(size=64), gmres=True),
        Case("darcy 64, log-normal", Darcy(size=64, coefficient="log_normal"), gmres=True),
        Case("darcy 128, two-valued", Darcy(size=128), gmres=True),
        Case("darcy 128, log-normal", Darcy(size=128, coefficient="log_normal"), gmres=True),
        Case("poisson 64", Poisson(size=64)),
        Case("helmholtz 64", Helmholtz(size=64)),
        Case("helmholtz 100", Helmholtz(size=100)),
        Case("convection_diffusion 64", ConvectionDiffusion(size=64)),
        Case("convection_diffusion 128", ConvectionDiffusion(size=128)),
        Case("darcy_fem", DarcyFem()),
        Case("darcy3d 32", Darcy3D(size=32)),
        Case("helmholtz3d 32", Helmholtz3D(size=32)),
        Case("elasticity", Elasticity()),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of one case."""

    case: str
    samples: int
    auto: Contender
    fixed: tuple[Contender, ...]
    """One method each; auto's own arms come first."""
    arms: int
    """How many those are."""
    everywhere: tuple[Contender, ...]
    """Those of `fixed` that are in `EVERYWHERE`, in its order."""
    gmres: tuple[Contender, ...] = ()
    """GMRES(40), GMRES(40) + ILU, or nothing."""
    choices: tuple[Mapping[str, Any], ...] = ()
    """What `auto` had learned in the end."""

    def total(self, contender: Contender) -> float:
        return contender.total(self.samples)

    @property
    def best(self) -> Contender:
        """Of the fixed ones that certified all they were given."""
        return min((c for c in self.fixed if not c.uncertified), key=self.total)

    @property
    def ratio(self) -> float:
        """Of auto's total to the best fixed method's."""
        return self.total(self.auto) / self.total(self.best)

    @property
    def later_ratio(self) -> float:
        """The same over the second half of the samples, when most has been learned."""
        return self.auto.rate / self.best.rate

    @property
    def speedups(self) -> tuple[float, ...]:
        """Over those of `gmres`."""
        return tuple(self.total(contender) / self.total(self.auto) for contender in self.gmres)


def measure(case: Case, patience_s: float = PATIENCE_S, chunk: int = CHUNK, stride: int = REFERENCE_STRIDE) -> Found:
    """Race all contenders over the samples of a case."""
    facts, system = facts_of(case.problem), system_of(case.problem)
    arms = Automatic().resolve(facts)
    portfolios: list[Portfolio] = []

    def portfolio() -> Portfolio:
        portfolios.append(Portfolio(system, arms, facts, seed=SEED, features=context.features))
        return portfolios[-1]

    context = Context(case.problem.schema)
    auto = Contender(
        "auto", portfolio, may_stop=False, by_draw=lambda _, draw: portfolios[-1].solve(None, context.of(draw))
    )
    methods = list(arms)
    methods += [method for method in (*RIVALS[facts.symmetry], *EVERYWHERE) if method not in arms]
    fixed = [_fixed(system, method, facts) for method in methods]
    references = (PLAIN_GMRES, ILU_GMRES) if case.gmres else ()
    gmres = [_fixed(system, method, facts, stride=stride) for method in references]
    race(system, _chunks(case, chunk), [auto, *fixed, *gmres], patience_s=patience_s)
    system.destroy()
    everywhere = tuple(fixed[methods.index(method)] for method in EVERYWHERE)
    return Found(
        case.name, case.samples, auto, tuple(fixed), len(arms), everywhere, tuple(gmres), portfolios[0].table()
    )


def _fixed(system: System, method: Method, facts: MatrixFacts, stride: int = 1) -> Contender:
    def make() -> Any:
        return make_single(system, method, facts)

    return Contender(_name(method, facts), make, stride=stride, may_stop=stride == 1)


def _name(method: Method, facts: MatrixFacts) -> str:
    label = method.resolve(facts.symmetry, facts.unknowns, structured=facts.grid is not None).label
    numbers = [str(number) for number in (method.restart, method.recycle) if number is not None]
    return label + (f" [{', '.join(numbers)}]" if numbers else "")


def _chunks(case: Case, size: int) -> Iterator[Sequence[Draw]]:
    schema = case.problem.schema
    design = Design("random", SEED, "train", case.samples, len(schema.parameters))

    def draw(sample: int) -> Draw:
        parameters = draw_parameters(schema, design, sample)
        return {**case.problem.draw(parameters, sample_generator(SEED, "train", sample)), "parameters": parameters}

    for start in range(0, case.samples, size):
        yield [draw(sample) for sample in range(start, min(start + size, case.samples))]


def say_case(report: Report, found: Found) -> None:
    """Every contender of a case, the cheapest first."""
    rows = [
        [
            contender.name,
            contender.mark(found.samples) + number(found.total(contender)),
            number(1e3 * contender.rate),
            f"{found.total(contender) / found.total(found.auto):.2f}",
            len(contender.seconds),
            contender.uncertified,
        ]
        for contender in sorted((found.auto, *found.fixed, *found.gmres), key=found.total)
    ]
    report.say(f"\n## {found.case}, {found.samples} samples\n")
    report.say(table(("contender", "total, s", "later half, ms", "/ auto", "solved", "uncertified"), rows))


def say_hindsight(report: Report, results: Sequence[Found]) -> None:
    rows = []
    for found in results:
        used = max(found.choices, key=lambda row: row["share"])
        best = found.best
        rows.append(
            [
                found.case,
                number(found.total(found.auto)),
                number(found.total(best)),
                f"{found.ratio:.3f}",
                f"{found.later_ratio:.3f}",
                best.name,
                used["method"],
                f"{100 * used['share']:.0f} %",
            ]
        )
    columns = ("problem", "auto, s", "best, s", "auto / best", "later half", "best in hindsight", "auto used", "for")
    report.say("\n## Against the best fixed method of each problem, in hindsight\n")
    report.say(table(columns, rows))
    worse = [f"{found.case} {found.ratio:.3f}" for found in results if found.ratio > HINDSIGHT]
    report.say(f"\nMore than {100 * (HINDSIGHT - 1):.0f} % above the best: {', '.join(worse) or 'none'}.")
    outside = [f"{found.case} {found.best.name}" for found in results if found.best not in found.fixed[: found.arms]]
    report.say(f"Where the best is none of auto's arms: {', '.join(outside) or 'nowhere'}.")
    given_up = [f"{found.case} {found.auto.uncertified}" for found in results if found.auto.uncertified]
    report.say(f"Samples that auto left uncertified: {', '.join(given_up) or 'none'}.")


def say_gmres(report: Report, results: Sequence[Found]) -> None:
    rows = []
    for found in (found for found in results if found.gmres):
        cells = [
            f"{contender.mark(found.samples).replace('~', '')}{speedup:.1f}x ({contender.uncertified} of "
            f"{len(contender.seconds)} given up)"
            for contender, speedup in zip(found.gmres, found.speedups, strict=True)
        ]
        rows.append([found.case, *cells])
    report.say("\n## Auto's speed on 2D Darcy over GMRES(40)\n")
    report.say(table(("problem", "no preconditioner", "ILU"), rows))


@dataclass(frozen=True, slots=True)
class Single:
    """One fixed method over all problems together."""

    method: Method
    seconds: float
    mark: str

    @property
    def name(self) -> str:
        facts = MatrixFacts("general", 1, None, 1.0)
        return _name(self.method, facts).replace("petsc-lu", "petsc").replace("mumps-lu", "mumps")


def singles(results: Sequence[Found]) -> list[Single]:
    """Every method of `EVERYWHERE`, those that certified everything first, the cheapest of them first."""
    found = []
    for k, method in enumerate(EVERYWHERE):
        marks = {result.everywhere[k].mark(result.samples) for result in results}
        seconds = sum(result.total(result.everywhere[k]) for result in results)
        found.append(Single(method, seconds, "≥" if "≥" in marks else "~" if "~" in marks else ""))
    return sorted(found, key=lambda single: (single.mark == "≥", single.seconds))


def say_single(report: Report, results: Sequence[Found]) -> None:
    auto = sum(found.total(found.auto) for found in results)
    hindsight = sum(found.total(found.best) for found in results)
    rows = [["best fixed method of each problem", number(hindsight), f"{hindsight / auto:.2f}"]]
    rows.append(["auto", number(auto), "1.00"])
    rows += [[one.name, one.mark + number(one.seconds), f"{one.seconds / auto:.2f}"] for one in singles(results)]
    report.say("\n## One method for all problems\n")
    report.say(table(("method", "all problems, s", "/ auto"), rows))


@dataclass(frozen=True, slots=True)
class Verdict:
    worst: float
    """auto / best fixed method, the largest."""
    case: str
    """Where."""
    plain: float
    """Times faster than GMRES(40) on Darcy, the smallest."""
    ilu: float
    """Than GMRES(40) + ILU."""
    single: float
    """Than the best single method, over all problems."""
    uncertified: int
    """Samples."""

    @property
    def ok(self) -> bool:
        fast = self.plain >= PLAIN and self.ilu >= ILU and self.single >= SINGLE
        return self.worst <= HINDSIGHT and fast and not self.uncertified


def judge(results: Sequence[Found]) -> Verdict:
    worst = max(results, key=lambda found: found.ratio)
    plain, ilu = (min(found.speedups[k] for found in results if found.gmres) for k in (0, 1))
    single = singles(results)[0].seconds / sum(found.total(found.auto) for found in results)
    uncertified = sum(found.auto.uncertified for found in results)
    return Verdict(worst.ratio, worst.case, plain, ilu, single, uncertified)


def main() -> int:
    options = arguments(__doc__ or "")
    if any(os.environ.get(key) != value for key, value in THREADS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | THREADS)
    report = Report("auto", options, ("numpy", "scipy"))
    results = []
    for case in cases(options.quick):
        results.append(measure(case, QUICK_PATIENCE_S if options.quick else PATIENCE_S))
        say_case(report, results[-1])
    if options.quick:
        report.say("\nWith 40 samples these totals are mostly learning: the verdict means something in full only.")
    say_hindsight(report, results)
    say_gmres(report, results)
    say_single(report, results)
    found = judge(results)
    figure = (
        f"{found.worst:.3f}x the best fixed method at worst ({found.case}), {found.plain:.0f}x and {found.ilu:.1f}x "
        f"faster than GMRES(40) and GMRES(40) + ILU on Darcy at least, {found.single:.2f}x than the best single method"
    )
    target = f"<= {HINDSIGHT}x, >= {PLAIN:.0f}x and >= {ILU:.0f}x, >= {SINGLE}x"
    return report.finish(figure, target, ok=found.ok)


if __name__ == "__main__":
    sys.exit(main())
