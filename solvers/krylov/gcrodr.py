"""GCRO-DR: restarted GMRES that carries a subspace from one linear system to the next.

Source: M. L. Parks, E. de Sturler, G. Mackey, D. D. Johnson, S. Maiti, "Recycling Krylov subspaces for sequences of
linear systems", SIAM J. Sci. Comput. 28 (2006), doi 10.1137/040607277.  Differs from it:

1. U lives in solution space and its image C = A U is recomputed for every system (k products), so that no error of
   the space can reach the answer and the preconditioner may change;
2. C is not orthonormalised: projections go through its Gram matrix, which saves a QR factorisation a system;
3. the directions kept have the smallest ‖A u‖ / ‖u‖ (a symmetric problem) instead of harmonic Ritz values;
4. flexible: Z = M⁻¹ V is stored;
5. the residual is recomputed in float64 after every cycle, and only it decides; so bases may be float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.solvers.krylov.arnoldi import Bases, Cycle, run_cycle
from forebay.solvers.krylov.panel import Panel
from forebay.solvers.krylov.projector import independent_directions
from forebay.solvers.krylov.rows import Rows
from forebay.solvers.krylov.selection import smallest_singular_directions
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc

Variant = Literal["exact", "economical", "frozen"]
Monitor = Callable[[int, float], bool | None]
"""Called with the iteration and the estimated ‖b - A x‖₂; a true answer ends the solve."""

YOUNG = 10
"""Systems during which an economical space is refreshed after every cycle."""
SLOW_CYCLE = 0.1
"""Later it is refreshed only after a cycle that left more than this of the residual."""
STALLED_CYCLE = 0.7
"""Two cycles in a row that left more than this make an economical solve go on as an exact one."""
HOPELESS_CYCLE = 0.9999
"""Three exact cycles in a row that left more than this end the solve."""
FLOORS = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}
"""Reduction of the residual that one cycle can reach with bases of that type."""


@dataclass(frozen=True, slots=True)
class GcroDrRecord:
    """What a solve took."""

    outcome: Outcome
    iterations: int
    """Krylov steps, each one product with A and one application of the preconditioner."""
    products: int
    """All products with A: steps, k images of the recycled directions, and residuals."""
    cycles: int
    residual: float
    """True relative residual ‖b - A x‖₂ / ‖b‖₂."""
    fell_back: bool = False
    """An economical solve stagnated and was finished exactly."""


@dataclass(slots=True, eq=False)
class _State:
    """One solve on its way."""

    rhs: np.ndarray
    norm: float
    x: np.ndarray
    residual: np.ndarray
    size: float
    """‖r‖₂."""
    exact: bool
    vectors: np.ndarray
    """U (k, n)."""
    systems: int
    iterations: int = 0
    products: int = 0
    cycles: int = 0
    slow: int = 0
    fell_back: bool = False
    inverse_gram: np.ndarray | None = None


class GcroDr:
    """A x = b for a sequence of systems, right-preconditioned: `init(operator)`, then `solve(b, space)`.

    Each cycle minimises ‖b - A x‖₂ over x + span(U) + M⁻¹ K(A M⁻¹, r), with dim U <= `recycle` and at most
    `restart` directions together.  Variants: "exact" keeps float64 bases and refreshes U after every cycle;
    "economical" keeps float32 bases and refreshes U early in the sequence and later after slow cycles only, and goes
    on as exact when it stagnates; "frozen" is economical that stops refreshing after the first `YOUNG` systems.
    Good values: (restart, recycle) = (80, 40), where the preconditioner is strong (60, 30), for exact (40, 20).  Works
    on any communicator: the arrays are the rows that this process owns.

    Raises:
        ValueError: restart <= recycle, or a variant that does not exist.
    """

    def __init__(self, *, restart: int = 80, recycle: int = 40, variant: Variant = "economical") -> None:
        if not 0 < recycle < restart - 1:
            raise ValueError(
                f"recycle = {recycle} directions do not fit a cycle of restart = {restart}; choose from 1 to "
                f"{restart - 2}, half of restart is a good value"
            )
        if variant not in ("exact", "economical", "frozen"):
            raise ValueError(f"variant = {variant!r} does not exist; choose exact, economical or frozen")
        self.restart, self.recycle, self.variant = restart, recycle, variant
        self._matrix: Any = None
        self._preconditioner: Any = None
        self._unknowns = -1
        self._layout: Any = None
        self._bases: dict[np.dtype, Bases] = {}
        self._imaged: tuple[int, np.ndarray] | None = None
        self._panel: Panel | None = None

    def init(self, matrix: Any, preconditioner: Any = None) -> None:
        """Take a PETSc Mat and a set-up PC (None: identity); storage is kept while the local size stays."""
        PETSc = petsc()
        layout = (matrix.getSizes(), matrix.comm.size)
        if layout != self._layout:
            self.destroy()
            size = matrix.getLocalSize()[0]
            self._unknowns, self._layout = size, layout
            self._bases.clear()
            self._arrays = (np.zeros(size), np.zeros(size), np.zeros(size))
            self._vecs = tuple(PETSc.Vec().createWithArray(array, comm=matrix.comm) for array in self._arrays)
            self._rows = Rows(matrix.comm)
        self._matrix, self._preconditioner = matrix, preconditioner
        self._imaged = None
        self._free_panel()

    def solve(
        self,
        rhs: np.ndarray,
        space: RecycleSpace | None = None,
        *,
        rtol: float = 1e-8,
        max_iterations: int = 10_000,
        guess: np.ndarray | None = None,
        monitor: Monitor | None = None,
    ) -> tuple[np.ndarray, GcroDrRecord, RecycleSpace | None]:
        """Solve for `rhs` (n,): the solution, what it took, and the space for the next system.

        Raises:
            ValueError: a space or guess of the wrong size, or rtol outside (0, 1).
            RuntimeError: `init` was not called.
        """
        self._check(rhs, rtol, guess)
        # A power of two costs no digit, and keeps residuals within float32 whatever the units of b.
        largest = self._rows.largest(rhs)
        shift = int(np.frexp(largest)[1]) if np.isfinite(largest) else 0
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the true residual says it
            scaled = None if guess is None else np.ldexp(guess.astype(np.float64), -shift)
            state = self._start(np.ldexp(rhs, -shift), space, scaled)
            seen = monitor if monitor is None or shift == 0 else _rescaled(monitor, shift)
            x, record, after = self._solve(state, space, rtol, max_iterations, seen)
            return np.ldexp(x, shift, out=x), record, after

    def _solve(
        self,
        state: _State,
        space: RecycleSpace | None,
        rtol: float,
        max_iterations: int,
        monitor: Monitor | None,
    ) -> tuple[np.ndarray, GcroDrRecord, RecycleSpace | None]:
        if not (np.isfinite(state.norm) and np.isfinite(state.size)):
            return state.x, self._record(state, Outcome.NONFINITE_INPUT), space
        if state.norm == 0.0:
            state.x[:] = 0.0
            return state.x, GcroDrRecord(Outcome.CONVERGED, 0, 0, 0, 0.0), space
        outcome = Outcome.CONVERGED
        target = rtol * state.norm
        if state.size > target and len(state.vectors):
            self._image(state)
        while not state.size <= target:
            if not np.isfinite(state.size):
                outcome = Outcome.DIVERGED
                break
            if state.iterations >= max_iterations:
                outcome = Outcome.MAX_ITERATIONS
                break
            failure = self._cycle(state, target, max_iterations, monitor)
            if failure is not None and state.size > target:
                outcome = failure
                break
        return state.x, self._record(state, outcome), self._space_of(state, space)

    def _check(self, rhs: np.ndarray, rtol: float, guess: np.ndarray | None) -> None:
        if self._matrix is None:
            raise RuntimeError("call init(matrix, preconditioner) before solve")
        if not 0 < rtol < 1:
            raise ValueError(f"rtol = {rtol} must lie between 0 and 1; try 1e-8")
        for name, array in (("right-hand side", rhs), ("guess", guess)):
            if array is not None and array.shape != (self._unknowns,):
                raise ValueError(f"the {name} has shape {array.shape}, the matrix {self._unknowns} unknowns here")

    def _start(self, rhs: np.ndarray, space: RecycleSpace | None, guess: np.ndarray | None) -> _State:
        vectors, systems = np.zeros((0, self._unknowns), np.float32), 0
        if space is not None:
            space.require_unknowns(self._unknowns)
            vectors, systems = space.vectors, space.systems
            if len(vectors) > self.recycle:
                vectors = vectors[: self.recycle]
        exact = self.variant == "exact" or vectors.dtype == np.float64
        x = np.zeros(self._unknowns) if guess is None else guess
        norm = self._rows.norm(rhs)
        state = _State(rhs, norm, x, rhs.copy(), norm, exact, vectors, systems + 1)
        if guess is not None:
            self._update_residual(state)
        return state

    def _cycle(self, state: _State, target: float, max_iterations: int, monitor: Monitor | None) -> Outcome | None:
        """Project, search, correct, and refresh the space; an outcome when going on has no sense."""
        bases, before = self._storage(state), state.size
        k = len(state.vectors)
        if k:
            self._project(state, bases)
            if state.size <= target:
                return None
        else:
            self._imaged = None  # the cycle is about to overwrite them
        start = state.size
        steps = min(self.restart - k, max_iterations - state.iterations)
        first = state.iterations
        cycle = run_cycle(
            bases,
            self._rows,
            recycled=k,
            inverse_gram=state.inverse_gram,
            start=state.residual,
            vectors=self._arrays,
            apply=self._apply,
            steps=steps,
            tolerance=0.9 * max(target, FLOORS[bases.images.dtype] * start),
            monitor=None if monitor is None else _counted(monitor, first),
        )
        state.iterations += cycle.steps
        state.products += cycle.steps
        state.cycles += 1
        if cycle.steps:
            self._correct(state, bases, cycle)
        if not np.isfinite(state.size):
            return Outcome.DIVERGED
        if cycle.broke_down and not state.size < before:
            return Outcome.DIVERGED
        if cycle.stopped:
            return Outcome.MAX_ITERATIONS
        kept = self._exact_from_now_on(state, before) if not state.exact else bases
        if kept is bases and cycle.steps > 1 and self._wants_refresh(state, k, target, start):
            self._refresh(state, bases, cycle)
        return self._stagnation(state, before)

    def _apply(self) -> None:
        """Set z = M⁻¹ v and w = A z."""
        v, z, w = self._vecs
        if self._preconditioner is None:
            v.copy(z)
        else:
            self._preconditioner.apply(v, z)
        self._matrix.mult(z, w)

    def _product(self, state: _State, x: np.ndarray) -> np.ndarray:
        """A x, in an array that the next product overwrites."""
        self._arrays[0][:] = x
        self._matrix.mult(self._vecs[0], self._vecs[2])
        state.products += 1
        return self._arrays[2]

    def _multiply(self, vectors: np.ndarray, images: np.ndarray) -> None:
        """A times every row of U; together where PETSc can, which reads the matrix once for four vectors."""
        if self._matrix.getType() != "seqaij":
            for image, direction in zip(images, vectors, strict=False):
                self._arrays[0][:] = direction
                self._matrix.mult(self._vecs[0], self._vecs[2])
                image[:] = self._arrays[2]
            return
        if self._panel is None:
            self._panel = Panel(self._matrix)
        self._panel.multiply(vectors, images)

    def _update_residual(self, state: _State) -> None:
        np.subtract(state.rhs, self._product(state, state.x), out=state.residual)
        state.size = self._rows.norm(state.residual)

    def _storage(self, state: _State) -> Bases:
        dtype = np.dtype(np.float64 if state.exact else np.float32)
        if dtype not in self._bases:
            self._bases[dtype] = Bases.allocate(self.restart, self.recycle, self._unknowns, dtype)
        return self._bases[dtype]

    # -- the recycled space ----------------------------------------------------------------------------------------

    def _image(self, state: _State) -> None:
        """C = A U and the inverse of its Gram matrix."""
        images = self._storage(state).images
        key = self._matrix.stateGet()
        if self._imaged is None or self._imaged[0] != key or self._imaged[1] is not state.vectors:
            self._multiply(state.vectors, images)
            state.products += len(state.vectors)
        self._factor_gram(state, images)
        self._remember_images(state)

    def _remember_images(self, state: _State) -> None:
        """The stored images serve the next right-hand side too, while the matrix and the space stay."""
        if self._matrix.getType() not in ("shell", "python"):  # whose state says nothing about their values
            self._imaged = (self._matrix.stateGet(), state.vectors)

    def _factor_gram(self, state: _State, images: np.ndarray) -> None:
        state.vectors, state.inverse_gram = independent_directions(state.vectors, images, self._rows)

    def _project(self, state: _State, bases: Bases) -> None:
        """Add U (C Cᵀ)⁻¹ C r to x, which makes the residual orthogonal to C."""
        weights = state.inverse_gram @ self._rows.dots(bases.images[: len(state.vectors)], state.residual)
        state.x += weights.astype(bases.images.dtype) @ state.vectors
        self._update_residual(state)

    def _correct(self, state: _State, bases: Bases, cycle: Cycle) -> None:
        """Add Z y - U B y to x, where B holds the components of A Z along C."""
        k = len(state.vectors)
        y = cycle.coefficients
        state.x += y.astype(bases.directions.dtype) @ bases.directions[: cycle.steps]
        if k:
            state.x -= (cycle.coupling[:k] @ y).astype(bases.images.dtype) @ state.vectors
        self._update_residual(state)

    def _wants_refresh(self, state: _State, recycled: int, target: float, start: float) -> bool:
        if state.exact or recycled < min(self.recycle, 5):
            return True
        if state.systems <= YOUNG:
            return True
        return self.variant == "economical" and state.size > target and state.size > SLOW_CYCLE * start

    def _refresh(self, state: _State, bases: Bases, cycle: Cycle) -> None:
        """Replace U by the best k directions of span[U, Z], and C by their images, without a product with A."""
        k, j = len(state.vectors), cycle.steps
        directions, images = bases.directions[:j], bases.images[: k + j + 1]
        scale = np.ones(0)
        coupling = np.zeros((k + j + 1, k + j))
        coupling[:, k:] = cycle.coupling
        gram = np.empty((k + j, k + j))
        gram[k:, k:] = self._rows.gram(directions, directions)
        image_gram = coupling.T @ coupling
        if k:
            own = self._rows.gram(state.vectors, state.vectors)
            scale = 1.0 / np.sqrt(np.diag(own))
            coupling[:k, :k] = np.diag(scale)
            gram[:k, :k] = own * scale[:, None] * scale
            gram[:k, k:] = self._rows.gram(state.vectors, directions) * scale[:, None]
            gram[k:, :k] = gram[:k, k:].T
            metric = np.eye(k + j + 1)
            metric[:k, :k] = self._rows.gram(images[:k], images[:k])
            image_gram = coupling.T @ metric @ coupling
        chosen = smallest_singular_directions(image_gram, gram, self.recycle)
        if chosen is None:
            return
        dtype = images.dtype
        vectors = chosen[k:].T.astype(dtype) @ directions
        if k:
            vectors += (chosen[:k] * scale[:, None]).T.astype(dtype) @ state.vectors
        bases.images[: len(vectors)] = (coupling @ chosen).T.astype(dtype) @ images
        state.vectors = vectors
        self._factor_gram(state, bases.images)
        self._remember_images(state)

    # -- stagnation ------------------------------------------------------------------------------------------------

    def _exact_from_now_on(self, state: _State, before: float) -> Bases:
        """Count slow cycles; after two, move the space to float64.  The storage that is in use then."""
        state.slow = state.slow + 1 if state.size > STALLED_CYCLE * before else 0
        if state.slow >= 2:
            state.exact = state.fell_back = True
            state.slow = 0
            state.vectors = state.vectors.astype(np.float64)
            if len(state.vectors):
                self._image(state)
        return self._storage(state)

    def _stagnation(self, state: _State, before: float) -> Outcome | None:
        if not state.exact:
            return None
        state.slow = state.slow + 1 if state.size > HOPELESS_CYCLE * before else 0
        return Outcome.RESIDUAL_ABOVE_TOLERANCE if state.slow >= 3 else None

    # -- results ---------------------------------------------------------------------------------------------------

    def _record(self, state: _State, outcome: Outcome) -> GcroDrRecord:
        relative = state.size / state.norm if state.norm else float("nan")
        return GcroDrRecord(outcome, state.iterations, state.products, state.cycles, relative, state.fell_back)

    def _space_of(self, state: _State, given: RecycleSpace | None) -> RecycleSpace | None:
        finite = self._rows.all(bool(np.isfinite(state.vectors).all()))
        return RecycleSpace(state.vectors, state.systems) if len(state.vectors) and finite else given

    def destroy(self) -> None:
        """Free PETSc's side; collective over the matrix's communicator."""
        if self._unknowns >= 0:
            for vec in self._vecs:
                vec.destroy()
            self._free_panel()
            self._unknowns, self._layout = -1, None

    def _free_panel(self) -> None:
        if self._panel is not None:
            self._panel.destroy()
            self._panel = None


def _rescaled(monitor: Monitor, shift: int) -> Monitor:
    return lambda iteration, estimate: monitor(iteration, float(np.ldexp(estimate, shift)))


def _counted(monitor: Monitor, first: int) -> Callable[[float], bool]:
    count = first

    def call(estimate: float) -> bool:
        nonlocal count
        count += 1
        return bool(monitor(count, estimate))

    return call
