"""How fast a cycle contracts on the present matrix, by a few steps of conjugate gradients towards a known solution."""

from __future__ import annotations

import numpy as np

from forebay.kernels.amg.krylov import advance, dot, multiply_dot, redirect, scaled
from forebay.kernels.amg.pcg import Cycle, Workspace
from forebay.kernels.guard import PROBE_STEPS, contraction

_SEED = 2026


def probe(matrix: tuple[np.ndarray, np.ndarray, np.ndarray], cycle: Cycle, work: Workspace) -> float:
    """Mean reduction of ‖error‖_A by an iteration; the same random error for every cycle.  Overwrites `work`.

    Args:
        matrix: indptr, indices (unsigned) and float64 values of A, CSR.
        cycle: the preconditioner.
        work: for one right-hand side.
    """
    work.x[:] = np.random.default_rng(_SEED).standard_normal(work.shape)
    multiply_dot(*matrix, work.x, work.r, work.squares)
    work.r *= -1.0
    work.p[:] = 0.0
    energies = [float(work.squares[0])]
    factor, old = 1 / np.linalg.norm(work.r, keepdims=True), np.zeros(1)
    scaled(work.r, factor, work.low)
    for _ in range(PROBE_STEPS):
        z = cycle(work.low)
        dot(work.r, z, work.products)
        new = work.products.copy()
        redirect(new / old if old > 0 else np.zeros(1), z, work.p)
        multiply_dot(*matrix, work.p, work.q, work.products)
        if not (new > 0 and work.products > 0):
            break
        advance(new / work.products, work.p, work.q, work.x, work.r, work.squares, factor, work.low)
        old = new
        # x is the error, and r = -A x.
        dot(work.r, work.x, work.squares)
        energies.append(-float(work.squares[0]))
    return contraction(energies) if len(energies) == PROBE_STEPS + 1 else float("nan")
