"""Whole fields from their values at few points: which points (Q-DEIM), and least squares there (gappy POD)."""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.solvers.rom.collective import refuse

_SINGULAR = 1e-12
"""Of the first pivot, or of the largest singular value: below it modes are linearly dependent."""


def qdeim(modes: np.ndarray, comm: Any) -> np.ndarray:
    """Rows of the modes (rows, q), q of all ranks, that tell the modes apart best: owned numbers.  Collective.

    QR of Φᵀ with column pivoting, exactly, on any number of ranks: q times the row of largest norm of all ranks, whose
    direction is then removed from every row.  O(rows q²) operations, one gather and two broadcasts a pivot.  Ties, as
    on symmetric meshes, are broken by rounding, perhaps otherwise on another number of ranks: either pick is as good.
    Rows are not multiplied by √w, although the modes are orthonormal with w: the field is to be seen where it peaks,
    and meshes are fine, hence w small, exactly there.
    Source: Drmač, Gugercin, SIAM J. Sci. Comput. 38 (2016), doi 10.1137/15M1019271.

    Returns:
        Numbers of rows of this rank, (any number from 0 to q,) int64, in the order in which they were picked.

    Raises:
        ValueError: on every rank: NaN or inf, fewer rows than modes, or linearly dependent modes.
    """
    refuse(comm, _complaint(modes))
    count = modes.shape[1]
    rows = sum(comm.allgather(len(modes)))
    if rows < count:
        raise ValueError(f"{count} modes on {rows} rows of all ranks; keep {rows} modes at most")
    left = np.array(modes, dtype=float)
    picked: list[int] = []
    first = 0.0
    for pivot in range(count):
        owner, row, direction = _largest(left, comm)
        size = float(np.linalg.norm(direction))
        first = first or size
        if size <= _SINGULAR * first or size == 0.0:
            raise ValueError(f"only {pivot} of {count} modes are linearly independent; keep {pivot} of them")
        if owner == comm.rank:
            picked.append(row)
        unit = direction / size
        left -= np.outer(left @ unit, unit)
    return np.array(picked, dtype=np.int64)


class Gappy:
    """Least squares for the coefficients z of p = Φ z from values at m points, P z ≈ p with P = Φ[points].

    The pseudo-inverse comes from a singular value decomposition of P once; a fit is then two small products.
    Source: Everson, Sirovich, J. Opt. Soc. Am. A 12 (1995), doi 10.1364/JOSAA.12.001657.
    """

    def __init__(self, modes: np.ndarray) -> None:
        """Modes at the points, P (m, q), m ≥ q: rows at cubature and Q-DEIM points together.

        Raises:
            ValueError: fewer points than modes, NaN or inf, or modes that these points do not tell apart.
        """
        if modes.ndim != 2 or not 0 < modes.shape[1] <= modes.shape[0]:
            raise ValueError(
                f"modes at points of shape {modes.shape}; it must be (m, q) with m ≥ q > 0: add the points of "
                f"qdeim(modes, comm), or keep fewer modes"
            )
        if complaint := _complaint(modes):
            raise ValueError(complaint)
        left, values, right = np.linalg.svd(modes, full_matrices=False)
        if values[-1] <= _SINGULAR * values[0]:
            raise ValueError(
                f"the {modes.shape[1]} modes are linearly dependent at these {modes.shape[0]} points (singular values "
                f"{values[0]:.3g} to {values[-1]:.3g}); add the points of qdeim(modes, comm)"
            )
        self._modes = modes
        self._inverse = (right.T / values) @ left.T
        self.condition = float(values[0] / values[-1])
        """σ₁ / σ_q of P; with Q-DEIM points alone usually below 100."""
        self.amplification = float(1 / values[-1])
        """1 / σ_q: |error of z| ≤ this × |error of the values|."""

    def fit(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (q,) and relative residual |P z - p| / |p| () of values (m,); of (m, k): (q, k) and (k,).

        The residual of zero values is 0.
        """
        coefficients = self._inverse @ values
        missed = np.linalg.norm(self._modes @ coefficients - values, axis=0)
        size = np.linalg.norm(values, axis=0)
        return coefficients, np.divide(missed, size, out=np.zeros_like(missed), where=size > 0)


def _complaint(modes: np.ndarray) -> str:
    return "" if np.isfinite(modes).all() else "modes hold NaN or inf; drop the snapshots that do before the POD"


def _largest(rows: np.ndarray, comm: Any) -> tuple[int, int, np.ndarray]:
    """(rank, row number there, row) of the largest row of all ranks, the lowest rank's and number's of equals."""
    norms = np.einsum("ij,ij->i", rows, rows)
    row = int(np.argmax(norms)) if len(norms) else -1
    best = comm.gather((float(norms[row]), row) if row >= 0 else (-1.0, -1))
    owner = comm.bcast(max(range(comm.size), key=lambda rank: best[rank][0]) if comm.rank == 0 else None)
    content = (row, rows[row].copy()) if comm.rank == owner else None
    number, direction = comm.bcast(content, root=owner)
    return owner, number, direction
