"""Initial guesses from solutions that are known already, or from any function of the draw.

Sources: P. F. Fischer, "Projection techniques for iterative solution of A x = b with successive right-hand sides",
Comput. Methods Appl. Mech. Eng. 163 (1998), doi 10.1016/S0045-7825(98)00012-7.  Differs from it:

1. the matrix may change from system to system, so images A x are made anew for each matrix (k products) instead of
   being carried along; while the matrix stays, only those of new solutions are made;
2. the last solutions are kept as they are, and their Gram matrix is truncated where Fischer orthonormalises them and
   starts over when the space is full (which is also what a POD of the snapshots would do, without choosing k);
3. the solutions of the samples nearest in features may be taken instead of the last.

PETSc has both as KSPGuess (-ksp_guess_type fischer, pod), inside a KSP: state that cannot be looked at, saved, or
chosen from by the draw, and that is lost when a KSP is made anew after a failure.  Here it is an object that the caller
owns, whose contents are the value `Snapshots`.

A guess changes iterates and the number of iterations, never what is certified.  Iterations of CG + ICC on log-normal
Darcy, 48 x 48, rtol 1e-8, 16 solutions, "energy": 53 without; 17 where the field drifts by 2 % a sample; for
independent samples of a four-parameter family 50 with the last, 47 with the last of a sorted sequence and 45 with the
nearest of 400; for independent fields 52, which is not worth its products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from forebay.pipeline.stages import Draw
from forebay.solvers.krylov.rows import Rows
from forebay.solvers.petsc import petsc

Minimise = Literal["residual", "energy"]
"""Of what a guess is best: ‖b - A x₀‖₂, or for A symmetric positive definite ‖x₀ - A⁻¹b‖_A, the norm of CG."""

DEPENDENT = 1e-14
"""Eigenvalues of the scaled Gram matrix below this times the largest are left out as rounding.

Successive solutions of a slowly drifting sequence are nearly parallel, and what is left out is lost: with 1e-12 CG and
ICC took 30 iterations where 1e-14 took 17 (none: 53); with 1e-15 rounding gets in and one guess was worse again.
"""


class Guess(Protocol):
    """Where an iterative solver starts."""

    def propose(self, draw: Draw, matrix: Any, rhs: np.ndarray) -> np.ndarray | None:
        """x₀ (n,), a new array, with ‖b - A x₀‖₂ < ‖b‖₂; None if there is none: start from zero.

        `matrix` is a PETSc Mat, `rhs` b (n,); n counts the unknowns of this process.  Collective over the matrix.
        """
        ...

    def learn(self, draw: Draw, solution: np.ndarray) -> None:
        """Take the certified solution (n,) of a draw; it is copied."""
        ...

    def clear(self) -> None:
        """Forget all that was learned."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Snapshots:
    """What a `SnapshotGuess` has learned; plain arrays that can be pickled."""

    solutions: np.ndarray
    """(k, n), the oldest first."""
    features: np.ndarray | None
    """(k, d), or None where the guess takes no features."""


class SnapshotGuess:
    """x₀ = Σᵢ yᵢ xᵢ of at most k earlier solutions xᵢ, with y best for the present A and b.

    `minimise` = "residual": y = argmin ‖b - A X y‖₂ from (A X)ᵀ(A X) y = (A X)ᵀ b, for any A; "energy": the Galerkin
    condition XᵀA X y = Xᵀ b, for symmetric positive definite A.  Both by a truncated eigendecomposition of the k x k
    matrix, scaled to unit diagonal, with one step of refinement.  Costs k products with A for a new matrix, one for a
    known one, and about 2 (k² + 6 k) n operations: 0.28 ms for k = 8 on Darcy 64 x 64.

    It keeps the last `capacity` solutions and combines the last `neighbours` of them; with `features`, a function from
    a draw to a vector (d,) such as `sorting.FeatureMap`, the nearest.  Solutions or features that are not finite are
    not learned.  In parallel every process calls all methods with its own rows, and the same draw.
    Good values: 4 ... 16 neighbours; a capacity of the same, with features of 64 ... 1024 (8 n capacity bytes, twice
    when the matrix stays the same).

    Raises:
        ValueError: capacity or neighbours < 1, neighbours > capacity, or a norm that does not exist.
    """

    def __init__(
        self,
        capacity: int,
        unknowns: int,
        *,
        neighbours: int | None = None,
        features: Callable[[Draw], np.ndarray] | None = None,
        minimise: Minimise = "residual",
        communicator: Any = None,
    ) -> None:
        chosen = capacity if neighbours is None else neighbours
        if not 1 <= chosen <= capacity:
            raise ValueError(
                f"{chosen} neighbours of capacity = {capacity} solutions; 1 <= neighbours <= capacity, 8 is a good "
                f"value of both"
            )
        _require_norm(minimise)
        self.capacity, self.unknowns, self.neighbours, self.minimise = capacity, unknowns, chosen, minimise
        self._features_of = features
        self._rows = Rows(petsc().COMM_SELF if communicator is None else communicator)
        self._solutions = np.empty((capacity, unknowns))
        self._features: np.ndarray | None = None
        self._learned = 0
        self._images = np.empty((capacity, unknowns))
        self._imaged = np.zeros(capacity, dtype=bool)
        self._matrix: tuple[Any, int] | None = None

    @property
    def known(self) -> int:
        """Solutions that it has now."""
        return min(self._learned, self.capacity)

    def propose(self, draw: Draw, matrix: Any, rhs: np.ndarray) -> np.ndarray | None:
        """The best combination of the chosen solutions; None if it does not lower the residual.

        Raises:
            ValueError: a matrix or right-hand side of another size, or features of another length.
        """
        _require_sizes(matrix, rhs, self.unknowns)
        if not self.known:
            return None
        chosen = self._choose(draw)
        self._image(matrix, np.arange(self.capacity)[chosen])
        return _combine(self._rows, self._solutions[chosen], self._images[chosen], rhs, self.minimise)

    def learn(self, draw: Draw, solution: np.ndarray) -> None:
        """Keep a copy of the solution in place of the oldest.

        Raises:
            ValueError: a solution of another size, or features of another length.
        """
        if np.shape(solution) != (self.unknowns,):
            raise ValueError(
                f"a solution of shape {np.shape(solution)} for a guess of {self.unknowns} unknowns on this process; "
                f"pass the solver's vector, not fields"
            )
        self._keep(solution, self._features_at(draw))

    def clear(self) -> None:
        """Forget all solutions."""
        self._learned, self._features, self._matrix = 0, None, None

    @property
    def snapshots(self) -> Snapshots:
        """A copy of what was learned, to be kept and given to `restore`."""
        slots = np.arange(self._learned - self.known, self._learned) % self.capacity
        features = self._features[slots] if self._features is not None else None
        return Snapshots(self._solutions[slots], features)

    def restore(self, snapshots: Snapshots) -> None:
        """Know these snapshots and no others; the oldest are left out if they are more than `capacity`.

        Raises:
            ValueError: solutions of another size, or features where none are used, or the other way round.
        """
        solutions, features = snapshots.solutions, snapshots.features
        if solutions.ndim != 2 or solutions.shape[1] != self.unknowns:
            raise ValueError(
                f"snapshots of shape {solutions.shape} for a guess of {self.unknowns} unknowns on this process; pass "
                f"those of the same problem and distribution"
            )
        if len(solutions) and (features is None) != (self._features_of is None):
            raise ValueError(
                f"snapshots {'without' if features is None else 'with'} features for a guess that was made "
                f"{'without' if self._features_of is None else 'with'} them; make both the same way"
            )
        self.clear()
        for row, solution in enumerate(solutions):
            self._keep(solution, None if features is None else features[row])

    def _features_at(self, draw: Draw) -> np.ndarray | None:
        if self._features_of is None:
            return None
        found = np.asarray(self._features_of(draw), dtype=np.float64)
        expected = found.shape[:1] if self._features is None else self._features.shape[1:]
        if found.ndim != 1 or found.shape != expected:
            raise ValueError(
                f"features of shape {found.shape}, earlier draws had {expected}; a draw has one vector of one length"
            )
        return found

    def _keep(self, solution: np.ndarray, features: np.ndarray | None) -> None:
        finite = np.isfinite(solution).all() and (features is None or np.isfinite(features).all())
        if not self._rows.all(bool(finite)):
            return
        slot = self._learned % self.capacity
        if features is not None:
            if self._features is None:
                self._features = np.empty((self.capacity, len(features)))
            self._features[slot] = features
        self._solutions[slot] = solution
        self._imaged[slot] = False
        self._learned += 1

    def _choose(self, draw: Draw) -> slice | np.ndarray:
        """Where the solutions to combine are kept; a slice, which copies nothing, when it is all of them."""
        count = self.known
        if count <= self.neighbours:
            return slice(0, count)
        wanted = self._features_at(draw)
        if self._features is None or wanted is None or not np.isfinite(wanted).all():
            return np.arange(self._learned - self.neighbours, self._learned) % self.capacity
        distances = np.linalg.norm(self._features[:count] - wanted, axis=1)
        return np.argsort(distances, kind="stable")[: self.neighbours]

    def _image(self, matrix: Any, slots: np.ndarray) -> None:
        """Have A x of these slots in `_images`."""
        state = matrix.stateGet()
        if self._matrix is None or (self._matrix[0].handle, self._matrix[1]) != (matrix.handle, state):
            # The matrix itself is kept too, so that no other can come to live at its address.
            self._matrix = (matrix, state)
            self._imaged[:] = False
        for slot in slots[~self._imaged[slots]]:
            _multiply(matrix, self._solutions[slot], self._images[slot])
            self._imaged[slot] = True


class CallableGuess:
    """x₀ = α g(draw) for any function g, with the best factor α: a surrogate, a coarse solve, a formula.

    α = (b, A g) / (A g, A g) for `minimise` = "residual", (g, b) / (g, A g) for "energy"; so a surrogate that has the
    shape right but not the size serves too.  Costs one call and one product with A.  It learns nothing itself.

    Raises:
        ValueError: a norm that does not exist.
    """

    def __init__(self, function: Callable[[Draw], np.ndarray], *, minimise: Minimise = "residual") -> None:
        _require_norm(minimise)
        self.minimise = minimise
        self._function = function

    def propose(self, draw: Draw, matrix: Any, rhs: np.ndarray) -> np.ndarray | None:
        """The scaled value of the function; None if that is not finite or does not lower the residual.

        Raises:
            ValueError: the function returned another shape than (n,), or `rhs` does not fit the matrix.
        """
        _require_sizes(matrix, rhs, len(rhs))
        value = np.ascontiguousarray(self._function(draw), dtype=np.float64)
        if value.shape != rhs.shape:
            raise ValueError(
                f"the guess function returned shape {value.shape}; it must be {rhs.shape}, the unknowns of this "
                f"process in the order of the matrix"
            )
        rows = Rows(matrix.comm)
        if not rows.all(bool(np.isfinite(value).all())):
            return None
        vectors, images = value[None], np.empty((1, len(rhs)))
        _multiply(matrix, vectors[0], images[0])
        return _combine(rows, vectors, images, rhs, self.minimise)

    def learn(self, draw: Draw, solution: np.ndarray) -> None:
        """Nothing: the function is trained elsewhere."""

    def clear(self) -> None:
        """Nothing."""


def _combine(
    rows: Rows, vectors: np.ndarray, images: np.ndarray, rhs: np.ndarray, minimise: Minimise
) -> np.ndarray | None:
    """Σ yᵢ xᵢ of `vectors` (k, n) with `images` A xᵢ, best for b; None if it leaves no smaller residual than zero does.

    One step of refinement makes up for the squared condition of the Gram matrix.
    """
    tests = images if minimise == "residual" else vectors
    with np.errstate(over="ignore", invalid="ignore"):  # numbers whose squares do not fit make no guess
        norm = rows.norm(rhs)
        inverse = _truncated_inverse(rows.gram(tests, images))
        if inverse is None or not 0 < norm < np.inf:
            return None
        weights, residual = np.zeros(len(vectors)), rhs
        for _ in range(2):
            weights += inverse @ rows.dots(tests, residual)
            residual = rhs - weights @ images
        return weights @ vectors if rows.norm(residual) < norm else None


def _truncated_inverse(gram: np.ndarray) -> np.ndarray | None:
    """Pseudoinverse (k, k) of a symmetric matrix on its clearly positive part; None if it is not finite."""
    if not np.isfinite(gram).all():
        return None
    diagonal = np.diag(gram)
    scale = np.sqrt(np.divide(1.0, diagonal, out=np.zeros(len(gram)), where=diagonal > 1e-30 * diagonal.max()))
    values, vectors = np.linalg.eigh(0.5 * (gram + gram.T) * scale[:, None] * scale)
    kept = values > DEPENDENT * values[-1]
    basis = scale[:, None] * vectors[:, kept]
    return (basis / values[kept]) @ basis.T


def _multiply(matrix: Any, vector: np.ndarray, product: np.ndarray) -> None:
    """Write A v to `product`; both are shared with PETSc, not copied."""
    PETSc = petsc()
    source, target = (PETSc.Vec().createWithArray(array, comm=matrix.comm) for array in (vector, product))
    matrix.mult(source, target)
    source.destroy()
    target.destroy()


def _require_norm(minimise: str) -> None:
    if minimise not in get_args(Minimise):
        raise ValueError(f"minimise = {minimise!r} does not exist; choose {' or '.join(get_args(Minimise))}")


def _require_sizes(matrix: Any, rhs: np.ndarray, unknowns: int) -> None:
    sizes = matrix.getLocalSize()
    if sizes != (unknowns, unknowns) or rhs.shape != (unknowns,):
        raise ValueError(
            f"a matrix with {sizes[0]} rows and {sizes[1]} columns on this process and a right-hand side of shape "
            f"{rhs.shape} for a guess of {unknowns} unknowns; make a guess for each size and distribution"
        )
