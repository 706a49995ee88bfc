"""Claim: on an H200 our kernels certify 20,000 Darcy systems of 128 x 128 a second, near what bytes and flops allow.

Darcy flow, log-normal coefficient (deviation 1), right-hand side 1, Dirichlet walls; rtol 1e-8 by a float64 residual
that the benchmark computes itself.  Each batch repeats 16 fields, which costs every contender the same.  "set-up" makes
levels and transfers, "solve" the rest.  `torch` is the same algorithm in plain torch on the same device, `sparse CG`
that of cupyx (if CuPy is installed) and of SciPy, in float64, one system after the other.  Floors are counted from the
kernels (`batched_gpu_floor.py`).  Without a GPU its columns stay empty, the floors are those of an H200's data sheet,
and what is measured is one core of the processor, for the first eight systems.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from batched_gpu_floor import H200, Chip, chip, floor_of
from common import Report, arguments, number, table

from forebay.kernels.cpu_backend import open_cpu
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
CORE_BATCH = 8
"""Systems for which a core of the processor is measured."""
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
    """Of a system, means over a batch, median of the repetitions."""

    setup_s: float
    solve_s: float
    iterations: float

    @property
    def rate(self) -> float:
        """Systems a second."""
        return 1 / (self.setup_s + self.solve_s)


def cases(quick: bool) -> tuple[Case, ...]:
    small = (Case((64, 64), 4096), Case((128, 128), 2048), Case((256, 256), 256), Case((32, 32, 32), 512))
    large = (Case((2048, 2048), 1), Case((128, 128, 128), 1))
    return tuple(Case(case.shape, min(case.batch, 128)) for case in small) if quick else small + large


def problem(case: Case, device: str) -> tuple[Stencil, torch.Tensor]:
    generator = np.random.default_rng(SEED)
    dim = len(case.shape)
    field = NeumannField(case.shape[0], 2.0 + 0.5 * (dim == 3), 3.0, 1.0, dim)
    drawn = [np.exp(field.draw(generator)) for _ in range(min(FIELDS, case.batch))]
    a = torch.from_numpy(np.stack(drawn)).to(device)
    a = a.repeat(-(-case.batch // len(drawn)), *[1] * dim)[: case.batch]
    return diffusion(a), torch.ones_like(a)


def timed(make: Callable[..., Any], stencil: Stencil, rhs: torch.Tensor, repeats: int) -> Timed:
    """After one run that compiles and loads.

    Raises:
        RuntimeError: a system is not certified.
    """
    rows = []
    for turn in range(repeats + 1):
        started = finished_s(rhs)
        solver = make(stencil, "multigrid")
        made = finished_s(rhs)
        fields, endings = solver.solve(rhs, rtol=RTOL, guess=None, max_iterations=200)
        ended = finished_s(rhs)
        certify(stencil, rhs, fields, getattr(make, "__qualname__", "ours"))
        if any(end.outcome is not Outcome.CONVERGED for end in endings):
            raise RuntimeError(f"a system of {stencil.shape} did not converge: {endings}")
        if turn:
            each = (made - started) / len(rhs), (ended - made) / len(rhs)
            rows.append((*each, statistics.fmean(end.iterations for end in endings)))
    return Timed(*(statistics.median(column) for column in zip(*rows, strict=True)))


def finished_s(where: torch.Tensor) -> float:
    """The time once the tensor's device has done what it was given."""
    if where.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def certify(stencil: Stencil, rhs: torch.Tensor, fields: torch.Tensor, whose: str) -> None:
    left = (rhs - apply(stencil, fields)).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
    if not bool((left <= 1.01 * RTOL).all()):
        raise RuntimeError(f"{whose}: a system of {stencil.shape} is not certified, {left.max():.1e}")


def ours_on_a_core(stencil: Stencil, preconditioner: str) -> Any:
    return open_cpu(stencil, preconditioner, 1, reuse=True)


def on_gpu(case: Case, repeats: int) -> dict[str, Timed]:
    stencil, rhs = problem(case, "cuda")
    found = {
        "ours": timed(CudaSolver.prepare, stencil, rhs, repeats),
        "torch": timed(TorchSolver.prepare, stencil, rhs, max(1, repeats // 3)),
    }
    if case.batch > 1 and importlib.util.find_spec("cupy") is not None:
        cupy, scipy = importlib.import_module("cupy"), "cupyx.scipy"
        found["sparse CG"] = sparse_cg(cupy, scipy, stencil, rhs, min(4, case.batch - 1))
    return found


def on_core(case: Case, repeats: int) -> dict[str, Timed]:
    """The first systems of the case; the number of threads is the process's, one."""
    few = replace(case, batch=min(case.batch, CORE_BATCH))
    stencil, rhs = problem(few, "cpu")
    found = {
        "ours": timed(ours_on_a_core, stencil, rhs, repeats),
        "torch": timed(TorchSolver.prepare, stencil, rhs, max(1, repeats // 3)),
    }
    if case.batch > 1:
        found["sparse CG"] = sparse_cg(np, "scipy", stencil, rhs, min(4, few.batch - 1))
    return found


def sparse_cg(
    array: Any, scipy: str, stencil: Stencil, rhs: torch.Tensor, systems: int, *, rtol: float = 0.9 * RTOL
) -> Timed:
    """CuPy's or SciPy's, unpreconditioned; the matrix is there already.

    `rtol` leaves room for CG's own residual, which may end a little below the true one.
    """
    sparse, linalg = (importlib.import_module(f"{scipy}.{name}") for name in ("sparse", "sparse.linalg"))
    # Older versions of CuPy call it tol.
    tolerance = {"rtol" if "rtol" in inspect.signature(linalg.cg).parameters else "tol": rtol}
    spent, steps = 0.0, 0
    for index in range(systems + 1):
        one = stencil.select(slice(index, index + 1))
        matrix, b = sparse_matrix(sparse, array, one), array.asarray(rhs[index].flatten())
        done: list[None] = []
        started = finished_s(rhs)
        solution, _ = linalg.cg(matrix, b, maxiter=20_000, callback=lambda _, done=done: done.append(None), **tolerance)
        seconds = finished_s(rhs) - started
        certify(one, rhs[index : index + 1], torch.as_tensor(solution, device=rhs.device).view_as(rhs[:1]), scipy)
        if index:  # the first one loads
            spent, steps = spent + seconds, steps + len(done)
    return Timed(0.0, spent / systems, steps / systems)


def sparse_matrix(sparse: Any, array: Any, stencil: Stencil) -> Any:
    cells = math.prod(stencil.shape)
    diagonals, offsets = [array.asarray(stencil.diagonal().flatten())], [0]
    for axis, face in enumerate(stencil.faces):
        stride = math.prod(stencil.shape[axis + 1 :])
        entries = torch.zeros_like(stencil.reaction)
        entries.narrow(axis + 1, 0, face.shape[axis + 1]).copy_(-face)
        values = array.asarray(entries.flatten()[: cells - stride])
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


def measured(report: Report, device: Chip | None, case: Case, repeats: int) -> dict[str, float]:
    """One row a contender; the figures that targets are about, none without a GPU."""
    gpu = {} if device is None else on_gpu(case, repeats)
    core = on_core(case, min(repeats, 3))
    rows = [[name, *cells(gpu.get(name)), *cells(core.get(name))] for name in dict.fromkeys([*gpu, *core])]
    head = ("set-up", "solve", "iterations", "systems/s")
    report.say(f"\n## {case.name}, on a GPU {case.batch} at a time\n")
    report.say(table(("µs a system", *(f"{where}: {name}" for where in ("GPU", "core") for name in head)), rows))
    if device is None:
        return {}
    ours = gpu["ours"]
    on_chip = plan_of(case.shape, H200_LIMITS, multigrid=True) is not None
    floor = floor_of(levels_of(case.shape), on_chip=on_chip)
    share = ours.iterations * (floor.on_chip_s(device) if on_chip else floor.large_s(device)) / ours.solve_s
    report.say(f"\nSolve at {100 * share:.0f} % of the floor; the rest is latency, barriers, refinement in float64.")
    return {"rate": ours.rate, "share": share} | {
        name: ours.rate / other.rate for name, other in gpu.items() if name != "ours"
    }


def cells(kept: Timed | None) -> list[str]:
    if kept is None:
        return [""] * 4
    return [number(1e6 * kept.setup_s), number(1e6 * kept.solve_s), f"{kept.iterations:.1f}", number(kept.rate)]


def verdict(report: Report, figures: dict[Case, dict[str, float]]) -> int:
    at_128 = next(found for case, found in figures.items() if case.shape == (128, 128))
    shares = [found["share"] for case, found in figures.items() if math.prod(case.shape) > 10**6]
    torches = min(found["torch"] for found in figures.values())
    cupyxes = [found["sparse CG"] for found in figures.values() if "sparse CG" in found]
    parts = [f"{number(at_128['rate'])} systems/s", f"{100 * min(shares):.0f} %" if shares else "floor not measured"]
    parts += [f"{torches:.1f}x torch", f"{min(cupyxes):.0f}x cupyx" if cupyxes else "cupyx not measured"]
    met = at_128["rate"] >= SYSTEMS_PER_S and torches >= OVER_TORCH
    met &= bool(shares) and min(shares) >= SHARE
    met &= bool(cupyxes) and min(cupyxes) >= OVER_CUPYX
    return report.finish(", ".join(parts), TARGET, ok=met)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__ or "", argv)
    report = Report("batched_gpu", options, ("torch", "numpy", "scipy"))
    torch.set_num_threads(1)
    device = chip() if torch.cuda.is_available() else None
    if device is not None:
        report.say(f"{device.name}: copies at {device.bytes_per_s / 1e12:.2f} TB/s")
    floors(report, device or H200, cases(options.quick))
    repeats = 3 if options.quick else 9
    figures = {case: measured(report, device, case, repeats) for case in cases(options.quick)}
    if device is None:
        return report.finish("not measured, no GPU", TARGET, ok=False)
    return verdict(report, figures)


if __name__ == "__main__":
    sys.exit(main())
