"""Claim: on an H200 our kernels certify 20,000 Darcy systems of 128 x 128 a second, near what bytes and flops allow.

Darcy flow, log-normal coefficient (deviation 1), right-hand side 1, Dirichlet walls; rtol 1e-8 by a float64 residual
that the benchmark computes itself.  Each batch repeats 16 fields, which costs every contender the same.  "set-up" makes
levels and transfers, "solve" the rest.  `torch` is the same algorithm in plain torch on the same device, `cupyx` the
sparse CG of CuPy in float64, one system after the other, if CuPy is installed.  Floors are counted from the kernels
(`batched_gpu_floor.py`).  Without a GPU nothing is measured, and the floors are those of an H200's data sheet.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batched_gpu_floor import H200, Chip, chip, floor_of
from common import Report, arguments, number, table

from forebay.kernels.cuda_backend import CudaSolver
from forebay.kernels.hierarchy import levels_of
from forebay.kernels.on_chip_plan import Limits, plan_of
from forebay.kernels.records import Outcome
from forebay.kernels.stencil import Stencil, apply, diffusion
from forebay.kernels.torch_backend import TorchSolver
from forebay.solvers.random_fields import NeumannField

TARGET = ">= 20,000 systems/s at 128 x 128, >= 70 % of the byte floor, >= 5x torch, >= 20x cupyx"
SYSTEMS_PER_S, SHARE, OVER_TORCH, OVER_CUPYX = 20_000.0, 0.70, 5.0, 20.0
RTOL, SEED, FIELDS = 1e-8, 20_261, 16
H200_LIMITS = Limits(232_448, 132, True)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    batch: int

    @property
    def name(self) -> str:
        return " x ".join(map(str, self.shape))


@dataclass(frozen=True)
class Timed:
    setup_s: float
    solve_s: float
    iterations: float
    """Of a system, mean."""

    def rate(self, batch: int) -> float:
        return batch / (self.setup_s + self.solve_s)


def cases(quick: bool) -> tuple[Case, ...]:
    small = (Case((64, 64), 4096), Case((128, 128), 2048), Case((256, 256), 256), Case((32, 32, 32), 512))
    large = (Case((2048, 2048), 1), Case((128, 128, 128), 1))
    return tuple(Case(case.shape, min(case.batch, 128)) for case in small) if quick else small + large


def problem(case: Case) -> tuple[Stencil, torch.Tensor]:
    generator = np.random.default_rng(SEED)
    dim = len(case.shape)
    field = NeumannField(case.shape[0], 2.0 + 0.5 * (dim == 3), 3.0, 1.0, dim)
    drawn = [np.exp(field.draw(generator)) for _ in range(min(FIELDS, case.batch))]
    a = torch.from_numpy(np.stack(drawn)).cuda()
    a = a.repeat(-(-case.batch // len(drawn)), *[1] * dim)[: case.batch]
    return diffusion(a), torch.ones_like(a)


def timed(make: Callable[..., Any], stencil: Stencil, rhs: torch.Tensor, repeats: int) -> Timed:
    """Medians after one run that compiles and loads.

    Raises:
        RuntimeError: a system is not certified.
    """
    rows = []
    for turn in range(repeats + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        solver = make(stencil, "multigrid")
        torch.cuda.synchronize()
        made = time.perf_counter()
        fields, endings = solver.solve(rhs, rtol=RTOL, guess=None, max_iterations=200)
        torch.cuda.synchronize()
        ended = time.perf_counter()
        left = (rhs - apply(stencil, fields)).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
        if any(end.outcome is not Outcome.CONVERGED for end in endings) or left.max() > 1.01 * RTOL:
            raise RuntimeError(f"{make.__qualname__}: a system of {stencil.shape} is not certified, {left.max():.1e}")
        if turn:
            rows.append((made - started, ended - made, statistics.fmean(end.iterations for end in endings)))
    return Timed(*(statistics.median(column) for column in zip(*rows, strict=True)))


def cupyx_rate(stencil: Stencil, rhs: torch.Tensor, systems: int) -> float | None:
    """Systems a second by CuPy's CG, or None where CuPy is not installed."""
    if importlib.util.find_spec("cupy") is None:
        return None
    cupy = importlib.import_module("cupy")
    sparse, linalg = (importlib.import_module(f"cupyx.scipy.{name}") for name in ("sparse", "sparse.linalg"))
    spent = 0.0
    for index in range(systems + 1):
        matrix = sparse_matrix(sparse, cupy, stencil.select(slice(index, index + 1)))
        b = cupy.asarray(rhs[index].flatten())
        torch.cuda.synchronize()
        started = time.perf_counter()
        linalg.cg(matrix, b, tol=RTOL, maxiter=20_000)
        torch.cuda.synchronize()
        spent += time.perf_counter() - started if index else 0.0
    return systems / spent


def sparse_matrix(sparse: Any, cupy: Any, stencil: Stencil) -> Any:
    cells = math.prod(stencil.shape)
    diagonals, offsets = [cupy.asarray(stencil.diagonal().flatten())], [0]
    for axis, face in enumerate(stencil.faces):
        stride = math.prod(stencil.shape[axis + 1 :])
        entries = torch.zeros_like(stencil.reaction)
        entries.narrow(axis + 1, 0, face.shape[axis + 1]).copy_(-face)
        values = cupy.asarray(entries.flatten()[: cells - stride])
        diagonals += [values, values]
        offsets += [stride, -stride]
    return sparse.diags(diagonals, offsets, format="csr")


def floors(report: Report, device: Chip, some: Sequence[Case]) -> None:
    """Bytes and flops of an iteration, and the systems a second that they allow at 15 iterations."""
    rows = []
    for case in some:
        plan = plan_of(case.shape, H200_LIMITS, multigrid=True)
        floor, unknowns = floor_of(levels_of(case.shape), on_chip=plan is not None), math.prod(case.shape)
        seconds = floor.large_s(device) if plan is None else floor.on_chip_s(device)
        where = (
            "device"
            if plan is None
            else f"{plan.cluster} block{'s' * (plan.cluster > 1)}, {plan.shared_bytes // 1024} KiB"
        )
        each = (
            floor.shared_bytes * (plan is not None),
            floor.level_bytes,
            floor.vector_bytes * (plan is None),
            floor.flops,
        )
        rows.append([case.name, where, *(f"{value / unknowns:.0f}" for value in each), number(1 / (15 * seconds))])
    columns = ("size", "vectors in", "shared B", "level B", "vector B", "flop", "systems/s at 15 iterations")
    report.say(f"\nFloors of an iteration, per unknown ({device.name})\n")
    report.say(table(columns, rows))


def measured(report: Report, device: Chip, case: Case, repeats: int) -> dict[str, float]:
    """One row a contender; the figures that targets are about."""
    stencil, rhs = problem(case)
    ours = timed(CudaSolver.prepare, stencil, rhs, repeats)
    plain = timed(TorchSolver.prepare, stencil, rhs, max(1, repeats // 3))
    others = cupyx_rate(stencil, rhs, min(4, case.batch - 1)) if case.batch > 1 else None
    on_chip = plan_of(case.shape, H200_LIMITS, multigrid=True) is not None
    floor = floor_of(levels_of(case.shape), on_chip=on_chip)
    least = ours.iterations * case.batch * (floor.on_chip_s(device) if on_chip else floor.large_s(device))
    rows = [
        [name, number(1e6 * kept.setup_s / case.batch), number(1e6 * kept.solve_s / case.batch),
         f"{kept.iterations:.1f}", number(kept.rate(case.batch))]
        for name, kept in (("ours", ours), ("torch", plain))
    ]  # fmt: skip
    if others is not None:
        rows.append(["cupyx", "-", number(1e6 / others), "-", number(others)])
    report.say(f"\n## {case.name}, {case.batch} at a time\n")
    report.say(table(("µs a system", "set-up", "solve", "iterations", "systems/s"), rows))
    share = least / ours.solve_s
    report.say(f"\nSolve at {100 * share:.0f} % of the floor; the rest is latency, barriers, refinement in float64.")
    rate = ours.rate(case.batch)
    found = {"rate": rate, "share": share, "torch": rate / plain.rate(case.batch)}
    return found if others is None else found | {"cupyx": rate / others}


def verdict(report: Report, figures: dict[Case, dict[str, float]]) -> int:
    at_128 = next(found for case, found in figures.items() if case.shape == (128, 128))
    shares = [found["share"] for case, found in figures.items() if math.prod(case.shape) > 10**6]
    torches = min(found["torch"] for found in figures.values())
    cupyxes = [found["cupyx"] for found in figures.values() if "cupyx" in found]
    parts = [f"{number(at_128['rate'])} systems/s", f"{100 * min(shares):.0f} %" if shares else "floor not measured"]
    parts += [f"{torches:.1f}x torch", f"{min(cupyxes):.0f}x cupyx" if cupyxes else "cupyx not measured"]
    met = at_128["rate"] >= SYSTEMS_PER_S and torches >= OVER_TORCH
    met &= bool(shares) and min(shares) >= SHARE
    met &= bool(cupyxes) and min(cupyxes) >= OVER_CUPYX
    return report.finish(", ".join(parts), TARGET, ok=met)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__ or "", argv)
    report = Report("batched_gpu", options, ("torch", "numpy"))
    if not torch.cuda.is_available():
        floors(report, H200, cases(quick=False))
        return report.finish("not measured, no GPU", TARGET, ok=False)
    device = chip()
    report.say(f"{device.name}: copies at {device.bytes_per_s / 1e12:.2f} TB/s")
    floors(report, device, cases(options.quick))
    repeats = 3 if options.quick else 9
    return verdict(report, {case: measured(report, device, case, repeats) for case in cases(options.quick)})


if __name__ == "__main__":
    sys.exit(main())
