"""The recycle space: what one solve leaves to the next, as a value that is passed, saved and restored."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class RecycleSpace:
    """Approximate invariant subspace of A for its smallest singular values (or eigenvalues).

    It lives in SOLUTION space and holds no image A U, so that it stays valid, only less effective, when the matrix or
    the preconditioner changes: a solver recomputes the images, and correctness never depends on the space.
    """

    vectors: np.ndarray
    """U, shape (k, n): one direction a row, n the entries that this process owns; float32 or float64, read-only."""
    systems: int = 0
    """Systems that it was refreshed or used on; solvers refresh more eagerly while it is young."""

    def __post_init__(self) -> None:
        vectors = self.vectors
        if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"a recycle space of {vectors.dtype} and shape {vectors.shape}; it must be float32 or float64 of shape "
                f"(directions, unknowns of this process)"
            )
        if not np.isfinite(vectors).all():
            raise ValueError("a recycle space that holds NaN or inf; start from None instead")
        vectors.setflags(write=False)

    @property
    def dimension(self) -> int:
        """Directions, k."""
        return len(self.vectors)

    def require_unknowns(self, unknowns: int) -> None:
        """Refuse a space of another problem, size or distribution.

        Raises:
            ValueError: the vectors do not have `unknowns` entries on this process.
        """
        if self.vectors.shape[1] != unknowns:
            raise ValueError(
                f"the recycle space has {self.vectors.shape[1]} unknowns a vector on this process, the matrix has "
                f"{unknowns}; pass the space of a system of the same size and distribution, or None"
            )

    def save(self, path: Path) -> None:
        """Write to one .npz file, whole or not at all; in parallel each process needs a file of its own."""
        unfinished = path.with_name(path.name + ".tmp")
        with unfinished.open("wb") as file:
            np.savez(file, vectors=self.vectors, systems=np.int64(self.systems))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> RecycleSpace:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a saved space.
        """
        try:
            with np.load(path, allow_pickle=False) as kept:
                return cls(kept["vectors"], int(kept["systems"]))
        except (KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{str(path)!r} is not a saved recycle space ({error}); start from None") from error
