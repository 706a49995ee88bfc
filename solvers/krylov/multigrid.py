"""Geometric multigrid on a box of equal cells: PETSc's V-cycle over coarse matrices that are made here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.pipeline.errors import ProblemError
from forebay.solvers.petsc import petsc

COARSEST = 2048
"""Cells at or below which a grid is factorised: an indefinite coarse operator is of use only while its grid resolves
the waves.  Helmholtz 64 x 64 takes 28 iterations when 8 x 8 is factorised, 10 with 16 x 16 and 7 with 32 x 32."""
COARSEST_DEFINITE = 300
"""The same for a positive definite matrix: iterations do not depend on it, and 24³ with a factor of 12³ takes twice
the time of 6³."""
OMEGA = 1.1
"""Of the SSOR sweeps.  Against 1.0: 7 iterations instead of 8 in 3D, no difference in 2D; 1.3 is worse everywhere."""


def configure_multigrid(pc: Any, grid: tuple[int, ...], *, definite: bool = False) -> None:
    """Make a serial PETSc PC one V-cycle on cells (ny, nx) or (nz, ny, nx); unknown = row-major number of a cell.

    The operators must be set on the PC; only their size is looked at, the rest waits for the first set-up.  The PC's
    type is `python` then, and its options prefix leads to the V-cycle: all of PETSc's `mg_levels_*`, `mg_coarse_*` and
    `pc_mg_*` apply, `pc_mg_levels` as an upper bound.  `definite` promises a positive definite matrix, which is right
    to say for CG: the coarsest grid is smaller then (`COARSEST_DEFINITE`).

    Raises:
        ProblemError: the grid has an axis of fewer than two cells, or not as many cells as the matrix has rows.
    """
    name = " x ".join(map(str, grid))
    if not grid or min(grid) < 2:
        raise ProblemError(
            f"grid_shape = {tuple(grid)} cannot be coarsened, multigrid needs at least 2 cells along every axis; use "
            f"solver.method = 'direct'"
        )
    rows = pc.getOperators()[1].getSize()[0]
    if rows != math.prod(grid):
        raise ProblemError(
            f"grid_shape = {tuple(grid)} has {name} = {math.prod(grid)} cells, but the matrix has {rows} rows; they "
            f"must be the same, one unknown a cell, or the problem must have no grid_shape"
        )
    pc.setType("python")
    pc.setPythonContext(GridMultigrid(grid, COARSEST_DEFINITE if definite else COARSEST))


class GridMultigrid:
    r"""Context of a PC of type python: cell-centred multigrid by aggregates of 2 x 2 (x 2) cells, over-corrected.

    Interpolation Q is constant on an aggregate (PETSc's DMDA Q0), restriction Qᵀ.  The coarse operator is the Galerkin
    product with every coupling halved,

        A_c = ½ QᵀAQ + ½ diag(s),   s = QᵀAQ·1 in cells off the walls, 0 in those at a wall.

    QᵀAQ alone adds up the transmissibilities of the faces between two aggregates but keeps the distance of the fine
    centres, which is half that of the coarse ones: its corrections are half as large as they should be, on each level
    anew.  The factor mends that in any dimension, at walls too (whose coupling is all that a wall cell's row sum holds
    but for reaction).  s gives back what is no coupling: a reaction term, or -k² of a Helmholtz operator.  The halving
    is exact where aggregates are pairs along each axis; of an odd number of cells one aggregate is a single.
    One SSOR sweep (ω = 1.1) before and after, the coarsest grid factorised.

    For a symmetric positive definite A the preconditioner is symmetric positive definite, hence right for CG: SSOR
    converges in the A-norm, is its own adjoint, and A_c is positive definite.  Row sums s < 0 void that.

    State: Q and the sparsity of the products; only numbers are redone for a new matrix, and the answer is the same to
    the last bit as from a new object.  A matrix object other than the last one starts anew.

    Measured on Darcy flow (two-valued 64 ... 256, log-normal 48³; 2 shared cores, rtol 1e-8): iterations and
    milliseconds with numeric set-up, in brackets for two values of contrast 1000.

    =================================  ==================  ==================  ===================  ===================
    CG with                            64 x 64             128 x 128           256 x 256            48 x 48 x 48
    =================================  ==================  ==================  ===================  ===================
    this                               7, 1.7 (11, 2.8)    7, 6.1 (12, 11)     8, 29 (14, 47)       7, 44 (12, 58)
    QᵀAQ (DMDA Q0, Galerkin), V-cycle  17, 3.6 (20, 4.5)   25, 19 (31, 25)     37, 116 (44, 136)    20, 104 (22, 104)
    QᵀAQ, W-cycle                      14, 3.2 (16, 4.5)   16, 16 (19, 21)     18, 78 (22, 96)      14, 80 (16, 88)
    linear interpolation, Galerkin     6, 2.6 (14, 4.9)    6, 9.5 (14, 19)     6, 38 (16, 80)       5, 131 (12, 197)
    linear interpolation, A_c          8, 2.0 (32, 7.9)    8, 7.7 (38, 30)     9, 35 (50, 170)      8, 51 (36, 208)
    GAMG                               12, 4.3 (20, 6.2)   13, 17 (21, 25)     14, 76 (27, 120)     11, 195 (17, 236)
    Eisenstat, ω = 1.8 ... 1.9         39, 2.0 (75, 3.9)   60, 13 (113, 26)    96, 94 (197, 195)    30, 50 (61, 104)
    Cholesky (nested dissection)       1.6 (1.8)           9.5 (11)            73 (74)              -
    =================================  ==================  ==================  ===================  ===================

    Other smoothers: forward before and backward after takes 12 to 14 iterations and more time, Chebyshev with Jacobi
    (3 steps) 10 and 1.6 times the time.  A W-cycle saves one iteration in eight, which it costs.
    GMRES with it: Helmholtz 64 x 64 / 100 x 100 at the default k 8 / 8 iterations and 0.7 / 0.5 of the time of LU,
    32³ 20 iterations (GAMG 46); without s three to four times as many.  Convection-diffusion 128 x 128 18 iterations.
    Where it is weak: coefficients that jump by 10³ from cell to cell (30 iterations at 128 x 128, GAMG 34); fewer than
    ten cells a wavelength on the coarsest grid (87 at k = 45, 128 x 128); Péclet numbers above 10⁴; cells far from
    cubes.

    Source: D. Braess, "Towards algebraic multigrid for elliptic problems of second order", Computing 55 (1995),
    doi:10.1007/BF02238488, for over-correction of constant interpolation; P. Wesseling, "Cell-centered multigrid for
    interface problems", J. Comput. Phys. 79 (1988), doi:10.1016/0021-9991(88)90005-8, for cells.  Differs from both:
    couplings only are scaled, so that the coarse operators are those of the coarse grid.
    """

    def __init__(self, grid: tuple[int, ...], coarsest: int) -> None:
        self._grid = grid
        self._coarsest = coarsest
        self._cycle: Any = None
        self._coarsenings: list[_Coarsening] = []
        self._matrix: int | None = None

    @property
    def levels(self) -> int:
        """Grids in use, 0 before the first set-up."""
        return 0 if self._cycle is None else 1 + len(self._coarsenings)

    def setUp(self, pc: Any) -> None:
        """Numbers of all levels for the PC's present matrix; PETSc calls it when that changed."""
        matrix = pc.getOperators()[1]
        if matrix.handle != self._matrix:
            self.destroy(pc)
            self._build(matrix, pc.getOptionsPrefix() or "")
            self._matrix = matrix.handle
        else:
            self._refresh(matrix)
        coarse = self._cycle.getMGCoarseSolve().getPC()
        coarse.setUp()
        pc.setFailedReason(coarse.getFailedReason())

    def apply(self, pc: Any, x: Any, y: Any) -> None:
        """One V-cycle from zero: y ≈ A⁻¹ x."""
        self._cycle.apply(x, y)

    def view(self, pc: Any, viewer: Any) -> None:
        """For -ksp_view."""
        if self._cycle is not None:
            self._cycle.view(viewer)

    def destroy(self, pc: Any) -> None:
        """Free PETSc's side."""
        for coarsening in self._coarsenings:
            coarsening.destroy()
        if self._cycle is not None:
            self._cycle.destroy()
        self._cycle, self._coarsenings, self._matrix = None, [], None

    def _build(self, matrix: Any, prefix: str) -> None:
        self._coarsenings = coarsenings(self._grid, self._coarsest)
        cycle = self._cycle = petsc().PC().create(matrix.getComm())
        cycle.setOptionsPrefix(prefix)
        cycle.setType("mg")
        cycle.setMGLevels(1 + len(self._coarsenings))
        cycle.setOperators(matrix)
        cycle.setFromOptions()
        self._bound(cycle)
        finer = matrix
        top = len(self._coarsenings)
        for level, coarsening in zip(range(top, 0, -1), self._coarsenings, strict=True):
            cycle.setMGInterpolation(level, coarsening.aggregates)
            finer = coarsening.refresh(finer)
            _smooth(cycle.getMGSmoother(level))
            (cycle.getMGSmoother(level - 1) if level > 1 else cycle.getMGCoarseSolve()).setOperators(finer)
        coarse = cycle.getMGCoarseSolve()
        coarse.setType("preonly")
        coarse.getPC().setType("lu")
        coarse.getPC().setFactorOrdering("nd")
        # PCMG shifts zero pivots; a singular operator then gives an answer of 1e6 and a breakdown instead of a reason.
        coarse.getPC().setFactorShift(petsc().Mat.FactorShiftType.NONE)
        self._first_set_up(prefix)

    def _bound(self, cycle: Any) -> None:
        """Drop the coarsest levels that the option `pc_mg_levels` does not want."""
        levels = min(max(cycle.getMGLevels(), 2), 1 + len(self._coarsenings))
        for coarsening in self._coarsenings[levels - 1 :]:
            coarsening.destroy()
        del self._coarsenings[levels - 1 :]
        cycle.setMGLevels(levels)

    def _first_set_up(self, prefix: str) -> None:
        """PETSc reads the levels' options now; petsc4py cannot set ω otherwise."""
        options = petsc().Options(prefix)
        name = "mg_levels_pc_sor_omega"
        given = options.hasName(name)
        if not given:
            options.setValue(name, OMEGA)
        try:
            self._cycle.setUp()
        finally:
            if not given:
                options.delValue(name)

    def _refresh(self, matrix: Any) -> None:
        finer = matrix
        for coarsening in self._coarsenings:
            finer = coarsening.refresh(finer)
        self._cycle.setOperators(matrix)
        self._cycle.setUp()


def _smooth(smoother: Any) -> None:
    """One sweep of PETSc's SOR, which is symmetric by default."""
    smoother.setType("richardson")
    smoother.setTolerances(max_it=1)
    smoother.setNormType(petsc().KSP.NormType.NONE)
    smoother.getPC().setType("sor")


@dataclass(slots=True)
class _Coarsening:
    """From one grid to the next coarser one."""

    aggregates: Any
    """Q, (fine cells, coarse cells)."""
    kept: Any
    """½ in coarse cells off the walls, 0 at a wall."""
    ones: Any
    sums: Any
    operator: Any = None

    def refresh(self, finer: Any) -> Any:
        """A_c of the finer matrix; the sparsity of QᵀAQ is worked out at the first call."""
        self.operator = finer.ptap(self.aggregates, result=self.operator)
        self.operator.mult(self.ones, self.sums)
        self.sums.pointwiseMult(self.sums, self.kept)
        self.operator.scale(0.5)
        self.operator.setDiagonal(self.sums, addv=petsc().InsertMode.ADD)
        return self.operator

    def destroy(self) -> None:
        for owned in (self.aggregates, self.kept, self.ones, self.sums, self.operator):
            if owned is not None:
                owned.destroy()


def coarsenings(grid: tuple[int, ...], coarsest: int) -> list[_Coarsening]:
    """From the finest grid down to the first of at most `coarsest` cells, or with an axis of one; at least one."""
    PETSc = petsc()
    found: list[_Coarsening] = []
    faces = [np.arange(n + 1, dtype=np.float64) for n in grid]
    shape = grid
    while not found or (math.prod(shape) > coarsest and min(shape) > 1):
        halves = [halve(axis) for axis in faces]
        faces = [coarse for coarse, _ in halves]
        fine, shape = math.prod(shape), tuple(len(axis) - 1 for axis in faces)
        owner = np.ravel_multi_index(np.ix_(*(cells for _, cells in halves)), shape).ravel()
        csr = (np.arange(fine + 1, dtype=PETSc.IntType), owner.astype(PETSc.IntType), np.ones(fine))
        aggregates = PETSc.Mat().createAIJ((fine, math.prod(shape)), csr=csr, comm=PETSc.COMM_SELF)
        kept = aggregates.createVecRight()
        kept.setArray(0.5 * off_walls(shape).ravel())
        ones = kept.duplicate()
        ones.set(1.0)
        found.append(_Coarsening(aggregates, kept, ones, kept.duplicate()))
    return found


def halve(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join the n cells between `faces` (n + 1,) along one axis to ⌈n/2⌉ of most equal width.

    Returns the coarse faces (⌈n/2⌉ + 1,) and the coarse cell of every cell (n,).  Of the faces each coarse one is the
    nearest to its place on a uniform grid.  Pairs from one end, with the odd cell at the other, are not good enough:
    that cell stays single on every level of 129 = 2⁷ + 1, and 14 iterations instead of 8 are the price.
    """
    n = len(faces) - 1
    uniform = np.linspace(faces[0], faces[-1], (n + 1) // 2 + 1)
    right = np.clip(np.searchsorted(faces, uniform), 1, n)
    nearest = np.where(uniform - faces[right - 1] <= faces[right] - uniform, right - 1, right)
    return faces[nearest], np.repeat(np.arange(len(nearest) - 1), np.diff(nearest))


def off_walls(shape: tuple[int, ...]) -> np.ndarray:
    """Which cells touch no wall, bool of that shape."""
    inner = np.zeros(shape, dtype=bool)
    inner[tuple(slice(1, -1) for _ in shape)] = True
    return inner
