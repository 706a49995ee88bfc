"""What a study may name in its `[solver]` table, and what kinds of things these are."""

from __future__ import annotations

from typing import Literal

Factor = Literal["auto", "petsc", "mumps"]
Reuse = Literal["none", "preconditioner"]
Variant = Literal["exact", "economical", "frozen"]
Backend = Literal["auto", "cpu", "cuda", "torch"]
OptionValue = str | int | float | bool

METHODS = ("direct", "cg", "deflated_cg", "gmres", "lgmres", "gcrodr", "bcgsl", "minres", "batched")
WITHOUT_PRECONDITIONER = ("direct", "batched")
"""Methods that are no iteration of PETSc's."""
RECYCLING = {"gcrodr": 80, "deflated_cg": 0}
"""Methods that carry a subspace from sample to sample, and their default restart."""
FACTORS = ("lu", "cholesky")
SYMMETRIC = (
    "none",
    "jacobi",
    "pbjacobi",
    "bjacobi",
    "sor",
    "eisenstat",
    "ilu",
    "icc",
    "gamg",
    "mg",
    "boxmg",
    "amg",
    "hypre",
)
PRECONDITIONERS = (*SYMMETRIC, "asm", "gasm", "kaczmarz", *FACTORS)
DEFAULT_PRECONDITIONER = {
    "cg": "gamg",
    "deflated_cg": "icc",
    "gmres": "ilu",
    "lgmres": "ilu",
    "gcrodr": "ilu",
    "bcgsl": "ilu",
    "minres": "jacobi",
}
POSITIVE_DEFINITE_ONLY = ("cg", "deflated_cg")
DEFINITE_ONLY = ("icc", "cholesky", "boxmg", "amg")
"""Preconditioners that need a positive definite matrix."""
OURS = ("boxmg", "amg")
"""Preconditioners of `forebay.kernels`, which learned weights may improve."""
WITH_OMEGA = ("eisenstat", "sor")
WITH_FILL = ("ilu", "icc", "bjacobi", "asm", "gasm")
