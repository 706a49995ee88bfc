"""Which linear solver a study asks for, checked before PETSc is loaded.

What a good choice is, by size and kind (milliseconds per system are in the benchmark results):
direct with reused analysis for 2D up to about 100,000 unknowns; CG with `gamg` for larger or 3D symmetric positive
definite systems; `gcrodr` with `ilu` for 3D indefinite ones; `bcgsl` with `ilu` where the matrix is not symmetric and
too large to factorise; `batched` for diffusion on a structured grid, which needs no PETSc at all.  `auto` finds out
while it solves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from forebay.pipeline.errors import StudyError
from forebay.pipeline.stages import Symmetry

Factor = Literal["auto", "petsc", "mumps"]
OptionValue = str | int | float | bool

NATIVE_UNKNOWNS = 100_000
"""Up to here `factor = "auto"` takes PETSc's own factorisation, beyond it MUMPS, whose supernodes pay off then."""

SMALLEST_RTOL = 1e-14
"""A true residual is itself only known to about √n machine epsilons."""

Reuse = Literal["none", "preconditioner"]
Variant = Literal["exact", "economical", "frozen"]

Backend = Literal["auto", "cpu", "cuda", "torch"]

METHODS = ("direct", "cg", "deflated_cg", "gmres", "lgmres", "gcrodr", "bcgsl", "minres", "batched")
WITHOUT_PRECONDITIONER = ("direct", "batched")
"""Methods that are no iteration of PETSc's."""
RECYCLING = {"gcrodr": 80, "deflated_cg": 0}
"""Methods that carry a subspace from sample to sample, and their default restart."""
_FACTORS = ("lu", "cholesky")
_SYMMETRIC = (
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
PRECONDITIONERS = (*_SYMMETRIC, "asm", "gasm", "kaczmarz", *_FACTORS)
_DEFAULT_PRECONDITIONER = {
    "cg": "gamg",
    "deflated_cg": "icc",
    "gmres": "ilu",
    "lgmres": "ilu",
    "gcrodr": "ilu",
    "bcgsl": "ilu",
    "minres": "jacobi",
}
_POSITIVE_DEFINITE_ONLY = ("cg", "deflated_cg")
_DEFINITE_ONLY = ("icc", "cholesky", "boxmg", "amg")
"""Preconditioners that need a positive definite matrix."""
OURS = ("boxmg", "amg")
"""Preconditioners of `forebay.kernels`, which learned weights may improve."""
_WITH_OMEGA = ("eisenstat", "sor")
_WITH_FILL = ("ilu", "icc", "bjacobi", "asm", "gasm")
_RESERVED = {
    "ksp_type": "solver.method",
    "pc_type": "solver.preconditioner",
    "ksp_rtol": "solver.rtol",
    "ksp_max_it": "solver.max_iterations",
    "ksp_gmres_restart": "solver.restart",
    "pc_factor_mat_solver_type": "solver.factor",
    "pc_sor_omega": "solver.omega",
    "pc_eisenstat_omega": "solver.omega",
    "pc_factor_levels": "solver.fill",
    "ksp_gcrodr_restart": "solver.restart",
    "ksp_gcrodr_recycle": "solver.recycle",
    "ksp_gcrodr_variant": "solver.variant",
    "ksp_deflated_cg_recycle": "solver.recycle",
    "ksp_deflated_cg_variant": "solver.variant",
    "ksp_reuse_preconditioner": "solver.reuse",
    "ksp_guess_type": "solver.guesses",
}
_WOULD_MIX_SAMPLES = ("ksp_initial_guess_nonzero", "pc_gamg_reuse_interpolation", "ksp_norm_type", "ksp_pc_side")
"""They would start a sample from another one, or measure it by another norm than the certificate's."""


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
    """Any of `PRECONDITIONERS`; by default gamg for cg, icc for deflated_cg, jacobi for minres, else ilu."""
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
        _require_known("solver.method", self.method, METHODS)
        _require_known("solver.factor", self.factor, ("auto", "petsc", "mumps"))
        _require_known("solver.backend", self.backend, get_args(Backend))
        if self.preconditioner is not None:
            _require_known("solver.preconditioner", self.preconditioner, PRECONDITIONERS)
        if not SMALLEST_RTOL <= self.rtol < 1:
            raise StudyError(
                f"solver.rtol = {self.rtol} must be at least {SMALLEST_RTOL}, what float64 can certify, and below 1; "
                f"try 1e-8"
            )
        numbers = {"max_iterations": self.max_iterations, "restart": self.restart, "recycle": self.recycle}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise StudyError(f"solver.{name} = {value} must be at least 1; leave it out for the default")
        self._check_combination()
        self._check_parameters()
        self._check_options()

    def _check_combination(self) -> None:
        if self.method in WITHOUT_PRECONDITIONER and self.preconditioner is not None:
            raise StudyError(
                f"solver.preconditioner = {self.preconditioner!r} has no use with solver.method = {self.method!r}; "
                f"leave it out, or choose an iterative method "
                f"({', '.join(m for m in METHODS if m not in WITHOUT_PRECONDITIONER)})"
            )
        if self.method != "direct" and self.factor != "auto":
            raise StudyError(
                f"solver.factor = {self.factor!r} has no use with solver.method = {self.method!r}; leave it out, or "
                f"use method = 'direct'"
            )
        if self.preconditioner == "eisenstat" and self.method != "cg":
            raise StudyError(
                f"solver.preconditioner = 'eisenstat' works with method = 'cg' only, not {self.method!r}; use 'sor'"
            )
        if self.method == "batched":
            self._check_batched()
            return
        needs_symmetric = self.method in (*_POSITIVE_DEFINITE_ONLY, "minres")
        if needs_symmetric and self._preconditioner not in (*_SYMMETRIC, "cholesky"):
            raise StudyError(
                f"solver.preconditioner = {self.preconditioner!r} is not symmetric, which {self.method!r} needs; use "
                f"'bjacobi' or 'gamg', or method = 'gmres'"
            )
        if self.preconditioner in _FACTORS and self.reuse == "none":
            raise StudyError(
                f"solver.preconditioner = {self.preconditioner!r} solves exactly, so that {self.method!r} has nothing "
                f"to do; use method = 'direct', or reuse = 'preconditioner' to keep the factor of an earlier sample"
            )
        if self.method == "direct" and self.reuse != "none":
            raise StudyError(
                "solver.reuse = 'preconditioner' has no use with solver.method = 'direct'; use an iterative method "
                "with preconditioner = 'lu' or 'cholesky' to solve with the factor of an earlier sample"
            )

    def _check_batched(self) -> None:
        if self.reuse != "none":
            raise StudyError(
                f"solver.reuse = {self.reuse!r} has no use with solver.method = 'batched', which sets its multigrid up "
                f"in the time of a few iterations; leave it out"
            )
        if self.options:
            name = next(iter(self.options))
            raise StudyError(
                f"solver.options.{name} = {self.options[name]!r} has no use with solver.method = 'batched', which is "
                f"none of PETSc's; leave it out"
            )

    def _check_learned(self, preconditioner: str | None) -> None:
        batched = self.method == "batched"
        if self.backend != "auto" and not batched:
            raise StudyError(
                f"solver.backend = {self.backend!r} has no use with solver.method = {self.method!r}; leave it out, or "
                f"use method = 'batched'"
            )
        if self.learned and not batched and preconditioner not in OURS:
            raise StudyError(
                f"solver.learned = {self.learned!r} has no use with solver.method = {self.method!r} and preconditioner "
                f"= {preconditioner!r}; leave it out, or use method = 'batched', or preconditioner = "
                f"{' or '.join(map(repr, OURS))}"
            )
        if self.learned == "online" and not batched and (self.method, preconditioner) != ("cg", "amg"):
            raise StudyError(
                f"solver.learned = 'online' works with solver.method = 'batched', or 'cg' with preconditioner = 'amg', "
                f"which look for new weights before each block, not with {self.method!r} and {preconditioner!r}; "
                f"use 'shipped', or a file"
            )

    def _check_parameters(self) -> None:
        """Numbers that only some methods have."""
        preconditioner = None if self.method in WITHOUT_PRECONDITIONER else self._preconditioner
        self._check_learned(preconditioner)
        if self.omega is not None:
            if preconditioner not in _WITH_OMEGA:
                raise StudyError(
                    f"solver.omega = {self.omega} has no use with preconditioner = {preconditioner!r}; leave it out, "
                    f"or use 'eisenstat' or 'sor'"
                )
            if not 0 < self.omega < 2:
                raise StudyError(f"solver.omega = {self.omega} must lie between 0 and 2, else SOR diverges; try 1.8")
        if self.fill and preconditioner not in _WITH_FILL:
            raise StudyError(
                f"solver.fill = {self.fill} has no use with preconditioner = {preconditioner!r}; leave it out, or use "
                f"one of {', '.join(_WITH_FILL)}"
            )
        if not 0 <= self.fill <= 10:
            raise StudyError(f"solver.fill = {self.fill} must lie in 0 ... 10; 0 to 3 are usual")
        if self.restart is not None and self.method not in ("gmres", "lgmres", "gcrodr"):
            raise StudyError(
                f"solver.restart = {self.restart} has no use with solver.method = {self.method!r}; leave it out, or "
                f"use gmres, lgmres or gcrodr"
            )
        if self.variant != "economical" and self.method not in RECYCLING:
            raise StudyError(
                f"solver.variant = {self.variant!r} has no use with solver.method = {self.method!r}; leave it out, or "
                f"use one of {', '.join(RECYCLING)}"
            )
        if self.recycle is not None and self.method not in RECYCLING:
            raise StudyError(
                f"solver.recycle = {self.recycle} has no use with solver.method = {self.method!r}; leave it out, or "
                f"use one of {', '.join(RECYCLING)}"
            )
        if self.method == "gcrodr" and not self.recycled < self.restarted - 1:
            raise StudyError(
                f"solver.recycle = {self.recycled} does not fit solver.restart = {self.restarted}; the restart counts "
                f"the recycled directions and must be at least two larger, twice as large is a good value"
            )

    def _check_options(self) -> None:
        for name in self.options:
            if name in _RESERVED:
                raise StudyError(
                    f"solver.options.{name} = {self.options[name]!r} would go unnoticed by the records; "
                    f"set {_RESERVED[name]}"
                )
            if name in _WOULD_MIX_SAMPLES:
                raise StudyError(
                    f"solver.options.{name} = {self.options[name]!r} is not allowed: a sample must not depend on those "
                    f"solved before it, nor be measured by another norm; leave it out"
                )
            if name.startswith("-") or not name:
                raise StudyError(f"solver.options has the key {name!r}; write PETSc option names without the dash")

    @property
    def restarted(self) -> int:
        """`restart`, or the method's default."""
        return self.restart or RECYCLING.get(self.method) or 30

    @property
    def recycled(self) -> int:
        """`recycle`, or the method's default: half a cycle of gcrodr."""
        return self.recycle or (max(1, self.restarted // 2) if self.method == "gcrodr" else 20)

    @property
    def _preconditioner(self) -> str:
        return self.preconditioner or _DEFAULT_PRECONDITIONER[self.method]

    def resolve(self, symmetry: Symmetry, unknowns: int, *, structured: bool = False) -> Choice:
        """What PETSc shall do for a matrix of that kind and size, on a structured grid or not.

        Raises:
            StudyError: the method is not valid for such a matrix.
        """
        if self.method == "direct":
            return self._resolve_direct(symmetry, unknowns)
        if self.method == "batched":
            return self._resolve_batched(symmetry, structured)
        if self._preconditioner in ("mg", "boxmg") and not structured:
            raise StudyError(
                f"solver.preconditioner = {self._preconditioner!r} needs a problem on a structured grid (one with "
                f"`grid_shape`); use 'gamg'"
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
        pc = self._preconditioner
        if pc in _DEFINITE_ONLY and symmetry != "spd":
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
        true_norm = right or (self.method in _POSITIVE_DEFINITE_ONLY and pc != "eisenstat")
        return Choice(
            self.method,
            pc,
            f"{self.method}+{pc}{self._detail()}",
            ordering="nd" if pc in _FACTORS else None,
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


def _require_known(key: str, value: str, choices: Iterable[str]) -> None:
    known = tuple(choices)
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    raise StudyError(f"{key} = {value!r} does not exist; {hint}")
