"""Which linear solver a study asks for, checked before PETSc is loaded.

What a good choice is, by size and kind (milliseconds per system are in the benchmark results):
direct with reused analysis for 2D up to about 100,000 unknowns; CG with `gamg` for larger or 3D symmetric positive
definite systems; `gcrodr` with `ilu` for 3D indefinite ones; `bcgsl` with `ilu` where the matrix is not symmetric and
too large to factorise; `batched` for diffusion on a structured grid, which needs no PETSc at all.  `auto` finds out
while it solves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from forebay.pipeline.errors import StudyError
from forebay.pipeline.stages import Symmetry
from forebay.solvers.method_faults import check_method
from forebay.solvers.method_names import (
    DEFAULT_PRECONDITIONER,
    DEFINITE_ONLY,
    FACTORS,
    POSITIVE_DEFINITE_ONLY,
    RECYCLING,
    Backend,
    Factor,
    OptionValue,
    Reuse,
    Variant,
)

NATIVE_UNKNOWNS = 100_000
"""Up to here `factor = "auto"` takes PETSc's own factorisation, beyond it MUMPS, whose supernodes pay off then."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A method made concrete for one matrix: what PETSc is told, and the name the records carry."""

    ksp: str
    pc: str
    label: str
    factor: str | None = None
    ordering: str | None = None
    side: Literal["left", "right"] = "left"
    monitors_true_norm: bool = True
    """Does the iteration stop by ‖b - A x‖₂?  If not, the certified residual can miss `rtol` at first."""
    reuses: bool = False
    """Is the preconditioner of an earlier sample kept while it is good enough?"""

    @property
    def direct(self) -> bool:
        """One factorisation instead of an iteration."""
        return self.factor is not None

    @property
    def needs_stencil(self) -> bool:
        """Is it made for the five- and seven-point stencils of grids alone?"""
        return self.ksp == "batched" or self.pc == "boxmg"

    @property
    def recycles(self) -> bool:
        """Does a subspace pass from sample to sample?"""
        return self.ksp in RECYCLING

    @property
    def remembers(self) -> bool:
        """Do iterates depend on samples solved before (certified all the same)?

        PETSc 3.25's LGMRES starts from error approximations of the solve before.
        """
        return self.recycles or self.reuses or self.ksp == "lgmres"


@dataclass(frozen=True, slots=True)
class Method:
    """The study's `[solver]` table: method, preconditioner, tolerance; `rtol` is the certified ‖b - A x‖₂ / ‖b‖₂.

    Good values: rtol 1e-8 (fields are kept in float32, so 1e-10 shows nowhere); restart 30 ... 100.

    Raises:
        StudyError: a name that does not exist, a number out of range, or a combination that cannot work.
    """

    method: str = "direct"
    preconditioner: str | None = None
    """One of `method_names.PRECONDITIONERS`; by default gamg for cg, icc for deflated_cg, jacobi for minres, else ilu.
    """
    factor: Factor = "auto"
    """Who factorises for "direct"."""
    rtol: float = 1e-8
    max_iterations: int = 10_000
    restart: int | None = None
    """Dimension of a cycle of gmres, lgmres (30) and gcrodr (80, recycled directions included)."""
    omega: float | None = None
    """Relaxation of eisenstat and sor, in (0, 2); by default 1, near 1.8 is better on fine grids."""
    fill: int = 0
    """Levels of fill of ilu and icc, also inside bjacobi and asm; 0 ... 3."""
    recycle: int | None = None
    """Directions that gcrodr (40) and deflated_cg (20) carry from sample to sample."""
    variant: Variant = "economical"
    """Of gcrodr and deflated_cg, see there."""
    reuse: Reuse = "none"
    """"preconditioner": keep that of an earlier sample while it still pays, see `reuse.RefreshRule`."""
    backend: Backend = "auto"
    """What "batched" computes on: "cpu", "cuda" (our kernels), "torch" (anywhere); "auto": a GPU where there is one."""
    learned: str = ""
    """Weights for "batched", "boxmg" and "amg": none, "shipped", a file, or "online": trained in the run, for "batched"
    and for "cg" with "amg"."""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """Raw PETSc options without prefix, for example {"pc_gamg_threshold": 0.02}."""

    def __post_init__(self) -> None:
        check_method(self)

    @property
    def restarted(self) -> int:
        """`restart`, or the method's default."""
        return self.restart or RECYCLING.get(self.method) or 30

    @property
    def recycled(self) -> int:
        """`recycle`, or the method's default: half a cycle of gcrodr."""
        return self.recycle or (max(1, self.restarted // 2) if self.method == "gcrodr" else 20)

    @property
    def chosen_preconditioner(self) -> str:
        """`preconditioner`, or the method's default; of methods that have one."""
        return self.preconditioner or DEFAULT_PRECONDITIONER[self.method]

    def resolve(self, symmetry: Symmetry, unknowns: int, *, structured: bool = False) -> Choice:
        """What PETSc shall do for a matrix of that kind and size, on a structured grid or not.

        Raises:
            StudyError: the method is not valid for such a matrix.
        """
        if self.method == "direct":
            return self._resolve_direct(symmetry, unknowns)
        if self.method == "batched":
            return self._resolve_batched(symmetry, structured)
        if self.chosen_preconditioner in ("mg", "boxmg") and not structured:
            raise StudyError(
                f"solver.preconditioner = {self.chosen_preconditioner!r} needs a problem on a structured grid (one "
                f"with `grid_shape`); use 'gamg'"
            )
        return self._resolve_krylov(symmetry)

    def _resolve_batched(self, symmetry: Symmetry, structured: bool) -> Choice:
        if symmetry != "spd" or not structured:
            has = f"the problem's is {_WORDS[symmetry]}" if symmetry != "spd" else "the problem has no `grid_shape`"
            raise StudyError(
                f"solver.method = 'batched' needs a symmetric positive definite matrix on a structured grid, {has}; "
                f"use {'direct, cg or auto' if symmetry == 'spd' else 'direct, gmres or auto'}"
            )
        return Choice("batched", "multigrid", "batched:learned" if self.learned else "batched:multigrid")

    def _resolve_direct(self, symmetry: Symmetry, unknowns: int) -> Choice:
        """Cholesky where the matrix allows it.

        PETSc's native L·Lᵀ and L·U with nested dissection have the smallest overhead, but do not pivot; MUMPS pivots
        and blocks.  An indefinite matrix gets the native L·U while small (the residual tells when pivots were needed).
        """
        native = self.factor == "petsc" or (self.factor == "auto" and unknowns <= NATIVE_UNKNOWNS)
        if native:
            kind = "cholesky" if symmetry == "spd" else "lu"
            return Choice("preonly", kind, f"direct:petsc-{kind}", factor="petsc", ordering="nd")
        kind = "lu" if symmetry == "general" else "cholesky"
        name = "ldlt" if symmetry == "symmetric" else kind
        return Choice("preonly", kind, f"direct:mumps-{name}", factor="mumps")

    def _resolve_krylov(self, symmetry: Symmetry) -> Choice:
        needs = {"cg": ("spd",), "deflated_cg": ("spd",), "minres": ("spd", "symmetric")}.get(self.method)
        if needs is not None and symmetry not in needs:
            others = "minres, gmres, bcgsl or direct" if symmetry == "symmetric" else "gmres, bcgsl or direct"
            raise StudyError(
                f"solver.method = {self.method!r} needs a {_WORDS[needs[-1]]} matrix, the problem's is "
                f"{_WORDS[symmetry]}; use {others}"
            )
        pc = self.chosen_preconditioner
        if pc in DEFINITE_ONLY and symmetry != "spd":
            raise StudyError(
                f"solver.preconditioner = {pc!r} needs a symmetric positive definite matrix, the problem's is "
                f"{_WORDS[symmetry]}; use {'lu' if pc == 'cholesky' else 'ilu'!r}"
            )
        if self.method == "minres" and symmetry == "symmetric" and pc not in ("none", "jacobi"):
            raise StudyError(
                f"solver.preconditioner = {pc!r} is not positive definite on an indefinite matrix, which 'minres' "
                f"needs; use 'jacobi' (by absolute values) or 'none'"
            )
        # BCGSL with right preconditioning returns iterates with residuals above 1 in PETSc 3.25, so it stays left.
        right = self.method in ("gmres", "lgmres", "gcrodr")
        true_norm = right or (self.method in POSITIVE_DEFINITE_ONLY and pc != "eisenstat")
        return Choice(
            self.method,
            pc,
            f"{self.method}+{pc}{self._detail()}",
            ordering="nd" if pc in FACTORS else None,
            side="right" if right else "left",
            monitors_true_norm=true_norm,
            reuses=self.reuse != "none",
        )

    def _detail(self) -> str:
        number = self.omega if self.omega is not None else self.fill or None
        if self.learned:
            return "(learned)"
        return ("" if number is None else f"({number:g})") + (":reused" if self.reuse != "none" else "")


_WORDS = {"spd": "symmetric positive definite", "symmetric": "symmetric", "general": "general (not symmetric)"}
