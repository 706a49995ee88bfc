r"""Sparse matrices in SELL-32-σ, the layout of csrc/sell.cuh, and what it takes to store them in 16 bits.

Rows are sorted by length within windows of σ, cut into slices of 32, and padded to the longest of their slice; the
entries of a slice lie entry by entry, so that 32 threads with a row each read 32 consecutive ones.  Source: Kreutzer,
Hager, Wellein, Fehske, Bishop, SIAM J. Sci. Comput. 36 (2014) C401-C423, doi:10.1137/130930352, with C = 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SLICE = 32
"""Rows of a slice: a warp."""


class Csr(Protocol):
    """What is read of a matrix in compressed sparse rows (`scipy.sparse.csr_array` for one)."""

    @property
    def indptr(self) -> np.ndarray:
        """Where each row begins, and the end."""

    @property
    def indices(self) -> np.ndarray:
        """Columns of the entries."""

    @property
    def data(self) -> np.ndarray:
        """The entries."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Sell:
    """One matrix; row k of the storage is row `order[k]` of the matrix."""

    slices: np.ndarray
    """Where each slice of 32 rows begins, in entries, and the end: int32 [slices + 1]."""
    columns: np.ndarray
    """int32, [stored]; padding repeats a column of its row (0 in an empty one)."""
    values: np.ndarray
    """float32, float64, or the bits of bfloat16 in uint16, [stored]; 0 in padding."""
    order: np.ndarray
    """int64, [rows]."""
    fill: float
    """Stored entries over entries of the matrix: 1.01 to 1.06 on sorted meshes of P1 elements."""

    @property
    def rows(self) -> int:
        """Of the matrix."""
        return len(self.order)


@dataclass(frozen=True, slots=True, eq=False)
class SoftMatrix:
    """A matrix whose off-diagonal entries may be rounded to 16 bits without harm to slow components."""

    off: Sell
    diagonal: np.ndarray
    """a_ii + Σ_j (a_ij - rounded a_ij), so that row sums, on which slow components depend, stay exact: [rows]."""


def length_order(indptr: np.ndarray, window: int = 512) -> np.ndarray:
    """Rows by falling length within windows of `window` rows, otherwise as they were, int64 [rows].

    Good values: 256 to 1024; longer windows store less padding, and tear neighbours further apart.

    Raises:
        ValueError: the window is not positive.
    """
    if window < 1:
        raise ValueError(f"a window of {window} rows; it must be at least 1 (no sorting), 256 to 1024 is good")
    lengths = np.diff(indptr)
    return np.lexsort((-lengths, np.arange(len(lengths)) // window)).astype(np.int64)


def sell(
    matrix: Csr,
    order: np.ndarray | None = None,
    column_order: np.ndarray | None = None,
    *,
    dtype: type = np.float64,
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Sell:
    """Store a matrix.

    Args:
        matrix: any shape, int32 or int64 indices.
        order: of the rows; None: `length_order`.
        column_order: of the vectors that it is applied to: entry k of the stored vector is `column_order[k]` of the
            unknowns.  None: as `order` for a square matrix, unchanged otherwise.
        dtype: of the values.
        convert: makes the stored values from those of `dtype`, for instance `to_bfloat16`.

    Raises:
        ValueError: orders that are not of the matrix's size, or more entries than 32-bit offsets reach.
    """
    rows, columns = matrix.shape
    order = length_order(matrix.indptr) if order is None else order
    if column_order is None:
        column_order = order if rows == columns else np.arange(columns)
    if (len(order), len(column_order)) != (rows, columns):
        raise ValueError(
            f"orders of {len(order)} rows and {len(column_order)} columns for a matrix of {rows} x {columns}"
        )
    lengths = np.zeros(-(-rows // SLICE) * SLICE, np.int64)
    lengths[:rows] = np.diff(matrix.indptr)[order]
    widths = lengths.reshape(-1, SLICE).max(axis=1)
    slices = np.concatenate([[0], np.cumsum(SLICE * widths)])
    if slices[-1] >= 2**31:
        raise ValueError(f"{slices[-1]} stored entries are too many for 32-bit offsets; split the matrix")
    position = np.empty(columns, np.int32)
    position[column_order] = np.arange(columns, dtype=np.int32)
    row = np.repeat(np.arange(rows), lengths[:rows])
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths[:rows]) - lengths[:rows], lengths[:rows])
    source = matrix.indptr[order][row] + place
    target = slices[row // SLICE] + SLICE * place + row % SLICE
    firsts = np.zeros(len(lengths), np.int32)
    filled = lengths[:rows] > 0
    firsts[:rows][filled] = position[matrix.indices[matrix.indptr[order][filled]]]
    slot_slice = np.repeat(np.arange(len(widths)), SLICE * widths)
    stored_columns = firsts[SLICE * slot_slice + np.arange(slices[-1]) % SLICE]
    stored_columns[target] = position[matrix.indices[source]]
    values = np.zeros(slices[-1], dtype)
    values[target] = matrix.data[source]
    stored = values if convert is None else convert(values)
    return Sell(slices.astype(np.int32), stored_columns, stored, order, slices[-1] / max(1, len(row)))


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even, uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The numbers that bits of bfloat16 stand for, float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def soft_matrix(matrix: Csr, order: np.ndarray, *, bits: int) -> SoftMatrix:
    """A square matrix for the preconditioner with off-diagonal entries of 16 or 32 bits and a float32 diagonal.

    Plainly rounded to 16 bits, a matrix of contrast 10⁶ took twice the iterations; with the row sums kept it does not.
    """
    size = matrix.shape[0]
    row = np.repeat(np.arange(size), np.diff(matrix.indptr))
    on = row == matrix.indices
    kept = np.where(on, 0.0, _rounded(matrix.data, bits))
    diagonal = np.bincount(row, matrix.data - kept, size)
    off = _Plain(
        np.concatenate([[0], np.cumsum(np.bincount(row[~on], minlength=size))]),
        matrix.indices[~on],
        matrix.data[~on],
        matrix.shape,
    )
    return SoftMatrix(_stored(off, order, None, bits), diagonal[order].astype(np.float32))


def soft_transfer(
    prolong: Csr, order: np.ndarray, coarse_order: np.ndarray, *, bits: int
) -> tuple[Sell, Sell, np.ndarray | None]:
    """P, its transpose, and the factor of each row of P that restores its sum after rounding (None at 32 bits)."""
    rows = prolong.shape[0]
    row = np.repeat(np.arange(rows), np.diff(prolong.indptr))
    spread = None
    if bits == 16:
        exact, rounded = (np.bincount(row, data, rows) for data in (prolong.data, _rounded(prolong.data, bits)))
        # Rows whose entries cancel have no sum to restore.
        sums = np.abs(exact) > 0.1 * np.bincount(row, np.abs(prolong.data), rows)
        spread = np.where(sums, exact / np.where(sums, rounded, 1.0), 1.0)[order].astype(np.float32)
    by_column = np.argsort(prolong.indices, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(prolong.indices, minlength=prolong.shape[1]))])
    transposed = _Plain(starts, row[by_column], prolong.data[by_column], (prolong.shape[1], rows))
    return (
        _stored(prolong, order, coarse_order, bits),
        _stored(transposed, coarse_order, order, bits),
        spread,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Plain:
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    shape: tuple[int, int]


def _stored(matrix: Csr, order: np.ndarray, column_order: np.ndarray | None, bits: int) -> Sell:
    return sell(matrix, order, column_order, dtype=np.float32, convert=to_bfloat16 if bits == 16 else None)


def _rounded(values: np.ndarray, bits: int) -> np.ndarray:
    return from_bfloat16(to_bfloat16(values)) if bits == 16 else np.asarray(values, np.float32)
