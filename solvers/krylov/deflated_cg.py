"""Deflated conjugate gradients: CG that carries a subspace from one symmetric positive definite system to the next.

Source: Y. Saad, M. Yeung, J. Erhel, F. Guyomarc'h, "A deflated version of the conjugate gradient algorithm", SIAM J.
Sci. Comput. 21 (2000), doi 10.1137/S1064829598339761.  Differs from it:

1. the image A W is recomputed for every system (k products), so that no error of the space can reach the answer, and
   the matrix and preconditioner may change;
2. W and A W may be float32; what that leaves of the residual in span(W) is removed now and then (`deflation.Cleaning`),
   the step's length is r·p / p·A p, and the residual recomputed in float64 decides;
3. the space is refreshed in the first systems of a sequence, and later only when solves become slower;
4. flexible variant: β by Polak and Ribière, as in Y. Notay, "Flexible conjugate gradients", SIAM J. Sci. Comput. 22
   (2000), doi 10.1137/S1064827599362314, with one previous direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.solvers.krylov.deflation import Cleaning, Deflation, SearchedDirections
from forebay.solvers.krylov.deflation_space import is_due, is_stale, kept, refreshed
from forebay.solvers.krylov.gcrodr import Monitor, Variant
from forebay.solvers.krylov.rows import Rows
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc

MARGIN = 0.99
"""The recurrence's residual must fall to this part of the target before the true one is computed."""
HOPELESS = 0.5
"""A float32 cycle that left more than this is followed by float64 ones; two of these in a row end the solve."""

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class DeflatedCgRecord:
    """What a solve took."""

    outcome: Outcome
    iterations: int
    """CG steps, each one product with A and one application of the preconditioner."""
    products: int
    """All products with A: steps, k images of the deflated directions, and residuals."""
    cycles: int
    """1 + restarts."""
    residual: float
    """True relative residual ‖b - A x‖₂ / ‖b‖₂."""
    fell_back: bool = False
    """A float32 solve stagnated and was finished in float64."""
    applications: int = 0
    """All applications of the preconditioner: steps, and k more when the space was refreshed."""
    reason: str = ""
    """Why it diverged, and what to do."""


@dataclass(slots=True, eq=False)
class _Solve:
    """One solve on its way.  Norms are those of the system scaled by 2^exponent."""

    rhs: np.ndarray
    norm: float
    """‖b‖₂."""
    exponent: int
    size: float = math.nan
    """‖b - A x‖₂."""
    first: float = math.nan
    """The same before the first projection."""
    iterations: int = 0
    products: int = 0
    applications: int = 0
    cycles: int = 0
    fell_back: bool = False
    stopped: bool = False
    """The monitor asked to end it."""
    stalled: bool = False
    """float32 gets no further."""
    reason: str = ""


class DeflatedCg:
    """A x = b for a sequence of symmetric positive definite systems: `init(operator)`, then `solve(b, space)`.

    Minimises the A-norm of the error over x + span(W) + a Krylov space of the preconditioned operator, restricted to
    the complement of span(W), dim W <= `recycle`; it takes the iterations of CG on the spectrum that is left there.
    Variants: "exact" keeps W in float64 and refreshes it after every solve; "economical" keeps float32 and refreshes
    it after each of the first ten solves, and again when they become slower; "frozen" never again.  A refresh
    looks at the first `search` directions of the solve (default 2 `recycle`).  `flexible` is for preconditioners that
    vary, are not linear, or not symmetric.
    Good values: recycle 20, search 40; recycle 0 is plain CG.  It pays where the low end of the spectrum holds CG up
    for several times `recycle` iterations, not with a multigrid preconditioner.  Works on any communicator: the
    arrays are the rows that this process owns.

    Raises:
        ValueError: recycle < 0, search < 1, or a variant that does not exist.
    """

    def __init__(
        self,
        *,
        recycle: int = 20,
        variant: Variant = "economical",
        search: int | None = None,
        flexible: bool = False,
    ) -> None:
        if recycle < 0:
            raise ValueError(f"recycle = {recycle} directions is negative; 20 is a good value, 0 is plain CG")
        if search is not None and search < 1:
            raise ValueError(f"search = {search} directions must be at least 1; twice recycle is a good value")
        if variant not in ("exact", "economical", "frozen"):
            raise ValueError(f"variant = {variant!r} does not exist; choose exact, economical or frozen")
        self.recycle, self.variant, self.flexible = recycle, variant, flexible
        self.search = max(1, 2 * recycle) if search is None else search
        self._matrix: Any = None
        self._preconditioner: Any = None
        self._unknowns = 0
        self._layout: tuple[int, int] | None = None
        self._deflations: dict[np.dtype, Deflation] = {}
        self._searched: dict[np.dtype, SearchedDirections] = {}
        self._imaged: tuple[int, np.dtype, np.ndarray] | None = None

    def init(self, matrix: Any, preconditioner: Any = None) -> None:
        """Take a PETSc Mat and a set-up PC (None: identity); storage is kept while the local size stays."""
        PETSc = petsc()
        layout = matrix.getSizes()[0]
        if layout != self._layout:
            self.destroy()
            self._layout, self._unknowns = layout, layout[0]
            self._arrays = tuple(np.zeros(self._unknowns) for _ in range(5))
            self._vecs = tuple(PETSc.Vec().createWithArray(array, comm=matrix.comm) for array in self._arrays)
            self._rows = Rows(matrix.comm)
        self._matrix, self._preconditioner = matrix, preconditioner
        self._imaged = None

    @np.errstate(over="ignore", invalid="ignore")  # the norms say it
    def solve(
        self,
        rhs: np.ndarray,
        space: RecycleSpace | None = None,
        *,
        rtol: float = 1e-8,
        max_iterations: int = 10_000,
        guess: np.ndarray | None = None,
        monitor: Monitor | None = None,
    ) -> tuple[np.ndarray, DeflatedCgRecord, RecycleSpace | None]:
        """Solve for `rhs` (n,): the solution, what it took, and the space for the next system.

        `monitor` is called with the iteration and ‖b - A x‖₂, and ends the solve as `max_iterations` does if it
        returns true.  A p with p·A p <= 0, or r with r·M⁻¹ r <= 0, ends it with `Outcome.DIVERGED` and a `reason`.

        Raises:
            ValueError: a space or guess of the wrong size, or rtol outside (0, 1).
            RuntimeError: `init` was not called.
        """
        self._check(rhs, space, rtol, guess)
        norm = self._rows.norm(rhs)
        if norm == 0.0:
            return np.zeros(self._unknowns), DeflatedCgRecord(Outcome.CONVERGED, 0, 0, 0, 0.0), space
        solve = self._start(rhs, norm, guess)
        if not math.isfinite(solve.size):
            return self._solution(solve), self._record(solve, Outcome.NONFINITE_INPUT), space
        target = rtol * solve.norm
        if solve.size <= target:
            return self._solution(solve), self._record(solve, Outcome.CONVERGED), space
        deflation, searched = self._prepare(solve, space)
        outcome, deflation = self._iterate(solve, deflation, searched, target, max_iterations, monitor)
        if outcome in (Outcome.CONVERGED, Outcome.MAX_ITERATIONS):
            space = self._next_space(solve, space, deflation, searched)
        return self._solution(solve), self._record(solve, outcome), space

    def _check(self, rhs: np.ndarray, space: RecycleSpace | None, rtol: float, guess: np.ndarray | None) -> None:
        if self._matrix is None:
            raise RuntimeError("call init(matrix, preconditioner) before solve")
        if not 0 < rtol < 1:
            raise ValueError(f"rtol = {rtol} must lie between 0 and 1; try 1e-8")
        for name, array in (("right-hand side", rhs), ("guess", guess)):
            if array is not None and array.shape != (self._unknowns,):
                raise ValueError(f"the {name} has shape {array.shape}, the matrix {self._unknowns} unknowns here")
        if space is not None:
            space.require_unknowns(self._unknowns)

    # -- one solve -------------------------------------------------------------------------------------------------

    def _start(self, rhs: np.ndarray, norm: float, guess: np.ndarray | None) -> _Solve:
        """Scaled so that ‖b‖₂ is near 1 whatever its units: float32 has a small range."""
        exponent = -math.frexp(norm)[1] if math.isfinite(norm) else 0
        solve = _Solve(np.ldexp(rhs, exponent), math.ldexp(norm, exponent), exponent)
        residual, *_, x = self._arrays
        x[:] = 0.0 if guess is None else np.ldexp(guess, exponent)
        residual[:] = solve.rhs
        solve.size = solve.norm
        if guess is not None:
            self._update_residual(solve)
        solve.first = solve.size
        return solve

    def _prepare(self, solve: _Solve, space: RecycleSpace | None) -> tuple[Deflation, SearchedDirections | None]:
        """W with its images, and room for the directions if the space may be refreshed."""
        vectors = np.empty((0, self._unknowns), _FLOAT32) if space is None else space.vectors
        if len(vectors) > self.recycle:
            vectors = vectors[: self.recycle]
        exact = self.variant == "exact" or vectors.dtype == _FLOAT64
        deflation = self._deflate(solve, vectors, _FLOAT64 if exact else _FLOAT32)
        if not self.recycle or not (self.variant == "economical" or is_due(space, self.variant, self.recycle)):
            return deflation, None
        if deflation.dtype not in self._searched:
            self._searched[deflation.dtype] = SearchedDirections(self.search, self._unknowns, deflation.dtype)
        searched = self._searched[deflation.dtype]
        searched.clear()
        return deflation, searched

    def _deflate(self, solve: _Solve, vectors: np.ndarray, dtype: np.dtype) -> Deflation:
        """Images are kept for the next right-hand side while the matrix and the space stay."""
        if dtype not in self._deflations:
            self._deflations[dtype] = Deflation(self._rows, self.recycle, self._unknowns, dtype)
        deflation = self._deflations[dtype]
        key = (self._matrix.stateGet(), dtype, vectors)
        known = self._imaged is not None and self._imaged[:2] == key[:2] and self._imaged[2] is vectors
        if not known:
            deflation.take(vectors, lambda w: self._product(solve, w))
        # The state of a matrix without entries says nothing about its values.
        self._imaged = None if self._matrix.getType() in ("shell", "python") else key
        return deflation

    def _iterate(
        self,
        solve: _Solve,
        deflation: Deflation,
        searched: SearchedDirections | None,
        target: float,
        max_iterations: int,
        monitor: Monitor | None,
    ) -> tuple[Outcome, Deflation]:
        """Project, search, compute the true residual; again until it is small or nothing helps."""
        hopeless = 0
        while True:
            before = solve.size
            if len(deflation):
                self._project(solve, deflation)
                if solve.size <= target:
                    return Outcome.CONVERGED, deflation
            if solve.stopped or solve.iterations >= max_iterations:
                return Outcome.MAX_ITERATIONS, deflation
            solve.reason = self._cycle(
                solve, deflation, searched, MARGIN * target, max_iterations - solve.iterations, monitor
            )
            searched = None  # only the first cycle starts from all of the spectrum
            self._update_residual(solve)
            if solve.size <= target:
                solve.reason = ""
                return Outcome.CONVERGED, deflation
            if solve.reason or not math.isfinite(solve.size):
                solve.reason = solve.reason or _OVERFLOW
                return Outcome.DIVERGED, deflation
            if solve.stopped or solve.iterations >= max_iterations:
                continue
            slow = solve.stalled or solve.size > HOPELESS * before
            if slow and deflation.single:
                deflation = self._deflate(solve, deflation.vectors, _FLOAT64)
                solve.fell_back = True
                continue
            hopeless = hopeless + 1 if slow else 0
            if hopeless == 2:
                return Outcome.RESIDUAL_ABOVE_TOLERANCE, deflation

    def _cycle(
        self,
        solve: _Solve,
        deflation: Deflation,
        searched: SearchedDirections | None,
        goal: float,
        limit: int,
        monitor: Monitor | None,
    ) -> str:
        """Deflated CG until the recurrence's residual falls to `goal`; why it broke down, if it did."""
        r, z, p, w, x = self._vecs
        _, preconditioned, direction, *_ = self._arrays
        products: np.ndarray | None = None
        rho = energy = 1.0
        cleaning = Cleaning(deflation.single, solve.size)
        solve.cycles, solve.stalled = solve.cycles + 1, False
        for step in range(limit):
            self._precondition(solve)
            previous, rho = rho, r.dot(z)
            if not 0 < rho < math.inf:
                return _PRECONDITIONER.format(rho)
            if step == 0:
                z.copy(p)
            else:
                # Polak-Ribière: z·(r - r_old) / ρ_old with r - r_old = -α A p and α = ρ_old / p·A p.
                p.aypx(-z.dot(w) / energy if self.flexible else rho / previous, z)
            if len(deflation):
                products = deflation.image_products(preconditioned)
                deflation.conjugate(direction, products)
            self._matrix.mult(p, w)
            energy = p.dot(w)
            if not 0 < energy < math.inf:
                return _MATRIX.format(energy)
            # Saad et al. have ρ, the same until r is corrected.  Then r·p_old stays what it became, the steps have the
            # wrong length for ever, and on an ill-conditioned matrix the residual grew to a thousand times b.
            alpha = r.dot(p) / energy
            x.axpy(alpha, p)
            r.axpy(-alpha, w)
            size = math.sqrt(r.dot(r))
            solve.iterations += 1
            solve.products += 1
            if searched is not None:
                searched.append(direction, energy, alpha, rho, products)
            if monitor is not None and monitor(solve.iterations, math.ldexp(size, -solve.exponent)):
                solve.stopped = True
                return ""
            if not goal < size < math.inf:
                return "" if size <= goal else _OVERFLOW
            if len(deflation) and cleaning.is_due(size):
                self._project(solve, deflation)
                solve.stalled = cleaning.is_useless(solve.size)
                if solve.stalled:
                    break
        return ""

    def _precondition(self, solve: _Solve) -> None:
        """Set z = M⁻¹ r."""
        r, z, *_ = self._vecs
        if self._preconditioner is None:
            r.copy(z)
        else:
            self._preconditioner.apply(r, z)
            solve.applications += 1

    def _product(self, solve: _Solve, direction: np.ndarray) -> np.ndarray:
        """A p, in an array that the next product overwrites."""
        self._arrays[2][:] = direction
        self._matrix.mult(self._vecs[2], self._vecs[3])
        solve.products += 1
        return self._arrays[3]

    def _update_residual(self, solve: _Solve) -> None:
        """Set r = b - A x; p and A p stay as they are, the next step needs them."""
        residual, preconditioned, *_ = self._arrays
        self._matrix.mult(self._vecs[4], self._vecs[1])
        solve.products += 1
        np.subtract(solve.rhs, preconditioned, out=residual)
        solve.size = self._rows.norm(residual)

    def _project(self, solve: _Solve, deflation: Deflation) -> None:
        """Make the residual orthogonal to W: x += Wᵀ E⁻¹ W r."""
        deflation.correct(self._arrays[4], self._arrays[0])
        self._update_residual(solve)

    # -- the space for the next system -----------------------------------------------------------------------------

    def _next_space(
        self, solve: _Solve, space: RecycleSpace | None, deflation: Deflation, searched: SearchedDirections | None
    ) -> RecycleSpace | None:
        decades = math.log10(solve.first / max(solve.size, 1e-300))
        pace = solve.iterations / decades if decades >= 1 else math.inf
        due = is_due(space, self.variant, self.recycle)
        stale = not due and is_stale(space, self.variant, pace)
        if searched is not None and (due or stale):
            vectors = searched.best(deflation, lambda image: self._preconditioned(solve, image), self.recycle)
            if vectors is not None:
                return refreshed(vectors, space, stale=stale)
        if space is None:
            return None
        return kept(deflation.vectors if solve.fell_back else space.vectors, space, pace)

    def _preconditioned(self, solve: _Solve, image: np.ndarray) -> np.ndarray:
        self._arrays[0][:] = image
        self._precondition(solve)
        return self._arrays[1]

    # -- results ---------------------------------------------------------------------------------------------------

    def _solution(self, solve: _Solve) -> np.ndarray:
        return np.ldexp(self._arrays[4], -solve.exponent)

    def _record(self, solve: _Solve, outcome: Outcome) -> DeflatedCgRecord:
        s = solve
        return DeflatedCgRecord(
            outcome, s.iterations, s.products, s.cycles, s.size / s.norm, s.fell_back, s.applications, s.reason
        )

    def destroy(self) -> None:
        """Free PETSc's side; collective over the matrix's communicator."""
        if self._layout is not None:
            for vec in self._vecs:
                vec.destroy()
            self._layout = self._matrix = self._imaged = None
            self._deflations.clear()
            self._searched.clear()


_MATRIX = "p·A p = {:.3g} is not positive: the matrix is indefinite, singular or not finite; use gcrodr, or minres"
_PRECONDITIONER = (
    "r·M⁻¹ r = {:.3g} is not positive: the preconditioner is not SPD, or not finite; use jacobi, or gcrodr"
)
_OVERFLOW = "the residual is not finite: the matrix is singular to working precision; scale or regularise it"
