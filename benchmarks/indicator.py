"""Claim: the estimated error of a reduced step bounds the true one nine times in ten, and is not far above it.

Necked bar, trained and calibrated (leave-one-out) on the four sets of `rom_accuracy`; judged step by step, the elastic
ones included, on held-out simulations inside of the training's ranges.  Coverage: share of the steps whose estimate is
at least the true error.  Ratio: median of estimate / true error.  A second table shows simulations outside, where
estimates are an extrapolation and the target does not apply.  Errors are those that `solvers.rom.errors.true_errors`
defines: displacement beside the largest one so far, plastic strain beside itself.
"""

from __future__ import annotations

import sys

import numpy as np
from common import Report, arguments, number, table
from rom_cases import HELD_OUT, OUTSIDE, TRAINING, Bar, one_thread
from scipy.stats import qmc

from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.errors import true_errors
from forebay.solvers.rom.offline import Reduced, build
from forebay.solvers.rom.online import ReducedModel

COVERAGE, RATIO = 0.90, (1.0, 3.0)
CELLS, QUICK_CELLS = (22, 5, 5), (12, 4, 4)
DRAWN, SEED = 12, 20_407
"""Held-out simulations that are drawn beside the three fixed ones."""


def held_out(count: int) -> list[tuple[float, ...]]:
    """Inside of the training's ranges, spread evenly."""
    low, high = np.min(TRAINING, axis=0), np.max(TRAINING, axis=0)
    unit = qmc.LatinHypercube(3, rng=np.random.default_rng(SEED)).random(count)
    return [(*(low[:3] + (high - low)[:3] * row), 1.0) for row in unit]


def judged(bar: Bar, reduced: Reduced, parameters: tuple[float, ...]) -> np.ndarray:
    """Estimates and true errors of every step, (s, 4): displacement and p, estimated, then true."""
    run = bar.run(parameters)
    found = ReducedModel(reduced.package, bar.problem.law).run(run.history)
    return np.hstack([found.errors, true_errors(bar.model, reduced.basis, run, found)])


def rows_of(steps: np.ndarray) -> list[tuple[str, float, float, float, float]]:
    """Name, coverage, median ratio, its 5 % and 95 % quantiles."""
    rows = []
    for column, name in enumerate(("displacement", "p")):
        estimate, true = steps[:, column], steps[:, 2 + column]
        known = true > 0
        ratios = estimate[known] / true[known]
        rows.append((name, float(np.mean(ratios >= 1)), float(np.median(ratios)), *np.quantile(ratios, (0.05, 0.95))))
    return rows


def main() -> int:
    options = arguments(__doc__ or "")
    one_thread()
    report = Report("indicator", options, ("numpy", "numba", "scipy"))
    bar = Bar(QUICK_CELLS if options.quick else CELLS)
    reduced = build(bar.model, [bar.run(parameters) for parameters in TRAINING], bar.origin, Settings())
    inside = [*HELD_OUT, *held_out(3 if options.quick else DRAWN)]
    steps = [judged(bar, reduced, tuple(parameters)) for parameters in inside]
    whole = np.vstack(steps)
    columns = ("inside", "steps", "coverage", "median ratio", "5 %", "95 %", "median true error, %")
    found = rows_of(whole)
    medians = np.median(whole[:, 2:], axis=0)
    report.say(
        table(
            columns,
            [
                [name, len(whole), f"{100 * share:.1f} %", *map(number, ratios), number(100 * true)]
                for (name, share, *ratios), true in zip(found, medians, strict=True)
            ],
        )
    )
    outside = np.vstack([judged(bar, reduced, parameters) for parameters in OUTSIDE[: 1 if options.quick else None]])
    report.say("")
    report.say(
        table(
            ("outside", *columns[1:]),
            [
                [name, len(outside), f"{100 * share:.1f} %", *map(number, ratios), number(100 * true)]
                for (name, share, *ratios), true in zip(
                    rows_of(outside), np.median(outside[:, 2:], axis=0), strict=True
                )
            ],
        )
    )
    coverage = min(share for _, share, *_ in found)
    ratios = [ratio for _, _, ratio, *_ in found]
    ok = coverage >= COVERAGE and all(RATIO[0] <= ratio <= RATIO[1] for ratio in ratios)
    figure = f"coverage {100 * coverage:.0f} %, median ratios {ratios[0]:.2f} and {ratios[1]:.2f}"
    return report.finish(figure, f">= {100 * COVERAGE:.0f} %, {RATIO[0]:g} to {RATIO[1]:g}", ok=ok)


if __name__ == "__main__":
    sys.exit(main())
