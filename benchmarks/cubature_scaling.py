"""Claim: selecting integration points in parts keeps the tolerance of the whole, with as few points and less work.

The integrands of a necked bar (displacement modes times stress modes, from the four training simulations of
`rom_accuracy`), cut along its axis into 1, 2, 4 and 8 parts as ranks would own them, in one process: what is
counted is points, the residual of the whole, and processor seconds of all parts together.  Three contenders: global
pursuit; every part alone for its own integrals, as arXiv 1812.07228 does; our hierarchical selection.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
from common import Report, arguments, number, table
from rom_cases import TRAINING, Bar, one_thread

from forebay.solvers.rom.basis import Settings, basis_of
from forebay.solvers.rom.cubature import integrals, integrand_rows, select, select_from_parts

CELLS, QUICK_CELLS = (22, 5, 5), (12, 4, 4)
PARTS = (1, 2, 4, 8)
TOLERANCES = (1e-2, 1e-3)
SPREAD = 0.05


def cut(bar: Bar, parts: int) -> list[np.ndarray]:
    """Quadrature points of each part, in slices along the bar."""
    order = np.argsort(bar.model.positions[:, 0], kind="stable")
    return [np.sort(part) for part in np.array_split(order, parts)]


def residual(integrands: np.ndarray, target: np.ndarray, points: Sequence[int], weights: np.ndarray) -> float:
    """Of the whole."""
    return float(np.linalg.norm(integrands[:, points] @ weights - target) / np.linalg.norm(target))


def timed(function):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The result and processor seconds."""
    start = time.process_time()
    return function(), time.process_time() - start


def main() -> int:
    options = arguments(__doc__ or "")
    one_thread()
    report = Report("cubature_scaling", options, ("numpy", "scipy"))
    bar = Bar(QUICK_CELLS if options.quick else CELLS)
    basis = basis_of(bar.model, [bar.run(parameters) for parameters in TRAINING], Settings())
    stress = (basis.stress.modes * basis.stress.singular_values).reshape(bar.model.points, 6, -1)
    comm = bar.model.comm
    integrands = integrand_rows(bar.model.strains(basis.displacement.modes), stress, comm)
    weights = bar.model.weights
    target = integrals(integrands, weights, comm)
    report.say(f"{integrands.shape[0]} rows, {integrands.shape[1]} points of the mesh\n")
    rows, sizes, worst = [], {}, 0.0
    for tolerance in TOLERANCES:
        for parts in PARTS:
            owned = cut(bar, parts)
            blocks = [np.ascontiguousarray(integrands[:, part]) for part in owned]
            found, seconds = timed(
                lambda blocks=blocks, owned=owned, tolerance=tolerance: select_from_parts(
                    blocks, target, tolerance, weights=[weights[part] for part in owned]
                )
            )
            points = np.concatenate([part[item.points] for part, item in zip(owned, found, strict=True)])
            reached = residual(integrands, target, points, np.concatenate([item.weights for item in found]))
            alone, alone_s = timed(
                lambda blocks=blocks, owned=owned, tolerance=tolerance: [
                    select(block, block @ weights[part], tolerance) for block, part in zip(blocks, owned, strict=True)
                ]
            )
            alone_points = np.concatenate([part[item.points] for part, item in zip(owned, alone, strict=True)])
            missed = residual(integrands, target, alone_points, np.concatenate([item.weights for item in alone]))
            sizes.setdefault(tolerance, []).append(len(points))
            worst = max(worst, reached / tolerance)
            rows.append(
                [
                    f"{tolerance:g}, {parts}",
                    len(points),
                    f"{reached:.2e}",
                    number(seconds),
                    len(alone_points),
                    f"{missed:.2e}" + (" !" if missed > tolerance else ""),
                    number(alone_s),
                ]
            )
    columns = ("tolerance, parts", "points", "residual", "s, all parts", "alone: points", "residual", "s, all parts")
    report.say(table(columns, rows))
    report.say("\n1 part is the global pursuit.  '!': the tolerance of the whole is missed.")
    spread = max((max(found) - min(found)) / (max(found) + min(found)) for found in sizes.values())
    figure = f"residual at most {worst:.2f} of the tolerance, points within {100 * spread:.1f} % over 1 to 8 parts"
    return report.finish(figure, f"<= 1, within {100 * SPREAD:.0f} %", ok=worst <= 1 and spread <= SPREAD)


if __name__ == "__main__":
    sys.exit(main())
