"""From a method to PETSc objects: the KSP, its preconditioner, and options that PETSc's defaults get wrong."""

from __future__ import annotations

from typing import Any

from forebay.pipeline.errors import StudyError
from forebay.solvers.krylov.ksp import DeflatedCgKsp, GcroDrKsp
from forebay.solvers.krylov.multigrid import configure_multigrid
from forebay.solvers.method_names import OURS, OptionValue
from forebay.solvers.methods import Choice, Method
from forebay.solvers.petsc import petsc


def make_ksp(matrix: Any, method: Method, choice: Choice, prefix: str, grid: tuple[int, ...] | None) -> Any:
    """A new KSP for a serial matrix; cheap until its first solve.

    Raises:
        StudyError: this PETSc lacks the preconditioner.
    """
    PETSc = petsc()
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(matrix)
    context = recycling_context(method)
    if context is None:
        ksp.setType(choice.ksp)
    else:
        ksp.setType("python")
        ksp.setPythonContext(context)
    _set_preconditioner(ksp.getPC(), method, choice, grid)
    if not choice.direct:
        ksp.setPCSide(PETSc.PC.Side.RIGHT if choice.side == "right" else PETSc.PC.Side.LEFT)
        if choice.monitors_true_norm:
            ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    if choice.ksp in ("gmres", "lgmres"):
        ksp.setGMRESRestart(method.restarted)
    options = PETSc.Options(prefix)
    for name, value in (default_options(method, choice) | dict(method.options)).items():
        options.setValue(name, value)
    ksp.setFromOptions()
    return ksp


def recycling_context(method: Method) -> GcroDrKsp | DeflatedCgKsp | None:
    """The Python side of a recycling method."""
    match method.method:
        case "gcrodr":
            return GcroDrKsp(restart=method.restarted, recycle=method.recycled, variant=method.variant)
        case "deflated_cg":
            return DeflatedCgKsp(recycle=method.recycled, variant=method.variant)
    return None


def _set_preconditioner(pc: Any, method: Method, choice: Choice, grid: tuple[int, ...] | None) -> None:
    if choice.pc in OURS:
        pc.setType("python")
        pc.setPythonContext(_own_preconditioner(pc.getOperators()[1], method, choice, grid))
        return
    try:
        pc.setType(choice.pc)
        if choice.factor is not None:
            pc.setFactorSolverType(choice.factor)
    except petsc().Error as error:
        raise StudyError(
            f"solver: this PETSc cannot do {choice.label!r} ({one_line(error)}); choose another "
            f"{'factor' if choice.direct else 'preconditioner'}"
        ) from error
    if choice.ordering is not None:
        pc.setFactorOrdering(choice.ordering)
    if choice.pc == "mg" and grid is not None:
        configure_multigrid(pc, grid, definite=choice.ksp in ("cg", "deflated_cg"))


def _own_preconditioner(matrix: Any, method: Method, choice: Choice, grid: tuple[int, ...] | None) -> Any:
    from forebay.solvers.krylov import grid_pc

    if choice.pc == "boxmg":
        return grid_pc.StencilPc(matrix, grid or (), method.learned)
    return grid_pc.AggregationPc(matrix, method.learned)


def default_options(method: Method, choice: Choice) -> dict[str, OptionValue]:
    """What the method's numbers mean to PETSc, and where PETSc's own default is not safe."""
    found: dict[str, OptionValue] = {}
    inner = "sub_" if choice.pc in ("bjacobi", "asm", "gasm") else ""
    if method.omega is not None:
        found[f"pc_{choice.pc}_omega"] = method.omega
    if method.fill:
        found[f"{inner}pc_factor_levels"] = method.fill
    if choice.factor == "mumps":
        # Working space for pivots found at run time; MUMPS' 20 % is too little for indefinite matrices.
        found["mat_mumps_icntl_14"] = 60
    if choice.pc == "gamg":
        # Kept interpolation would make an answer depend on which samples came before.
        found["pc_gamg_reuse_interpolation"] = False
    if choice.pc == "icc" or inner:
        # By default incomplete Cholesky shifts the diagonal until its pivots are positive; on a singular or not
        # symmetric matrix with dominant diagonal the shift is zero and PETSc 3.25 never returns.
        found[f"{inner}pc_factor_shift_type"] = "none"
    if choice.ksp == "minres" and choice.pc == "jacobi":
        # MINRES needs a positive definite preconditioner even where the diagonal changes sign.
        found["pc_jacobi_abs"] = True
    return found


def one_line(error: Exception) -> str:
    """First and last line of PETSc's many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join([lines[0], *lines[-1:]]) if len(lines) > 1 else lines[0]
