"""Quasi-static solids with any material law: hexahedra or tetrahedra, implicit steps, one process or many.

Small strains; for every step find u with ∫ σ:ε(v) dx = Σ loads fᵢ(v), σ from the law at every quadrature point, u
prescribed on supports.  Units: mm, N, MPa, s, °C.  Tensors are Mandel vectors, see `materials.law`.

Rows of every array are those that this process owns: degrees of freedom (`dofs`) and quadrature points (`points`).
`dof_ids` and `point_ids` number them independently of how many processes there are.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from forebay.solvers.fem.solid_loads import Constraints, assemble_loads, lumped_mass
from forebay.solvers.fem.solid_mesh import SolidMesh
from forebay.solvers.fem.solid_newton import Increment, Newton, Solved
from forebay.solvers.fem.solid_space import SolidSpace
from forebay.solvers.fem.solid_tangent import Linear, Tangent
from forebay.solvers.fem.solid_types import (
    Effort,
    SolidState,
    SolveError,
    StepRecord,
    Support,
    Trajectory,
    UnitLoad,
)
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import TENSOR, Law, Response, plastic_strain, width

__all__ = ["SolidModel", "SolidState", "SolveError", "StepRecord", "Support", "Trajectory", "UnitLoad"]

_SMALLEST = 2.0**-8
"""Of a substep, as a part of the step."""
_LIFT_POISSON = 0.3

Observe = Callable[[int, SolidState, StepRecord], None]


class SolidModel:
    """A mesh with supports and unit loads, ready to be driven through histories; making one is collective.

    `order` 1 with full integration is good for hexahedra while plastic strains stay moderate; tetrahedra need order 2
    (linear ones lock).  `linear`: "mumps" for meshes to some 100,000 unknowns, "gamg" (GMRES with algebraic
    multigrid) beyond.  `rtol` bounds the relative residual; Newton's method usually ends far below it.

    Raises:
        ValueError: supports, loads or numbers that make no sense; the text says which.
    """

    def __init__(
        self,
        mesh: SolidMesh,
        supports: Sequence[Support],
        loads: Sequence[UnitLoad],
        *,
        order: int = 1,
        quadrature: int | None = None,
        linear: Linear = "mumps",
        rtol: float = 1e-8,
        name: str = "solid",
    ) -> None:
        if not 0 < rtol < 1e-2:
            raise ValueError(f"rtol = {rtol} must lie between 0 and 1e-2; 1e-8 suits reduced models")
        self.name, self.mesh, self.comm = name, mesh, mesh.comm
        self._space = space = SolidSpace(mesh, order, quadrature)
        self._constraints = Constraints(space, supports)
        self._tangent = Tangent(space, self._constraints, linear, name)
        self._newton = Newton(space, self._constraints, self._tangent, rtol)
        self.load_names = tuple(load.name for load in loads)
        self.displacement_names = self._constraints.names
        self.nodal_loads = assemble_loads(space, loads)
        """Nodal forces at amplitude one (dofs, L); reactions are `internal_force` minus these times the amplitudes."""
        self.unit_loads = self.nodal_loads.copy()
        """The same, zero at constrained degrees of freedom."""
        self.unit_loads[self._constraints.fixed] = 0.0
        self.unknowns = int(space.space.dofmap.index_map.size_global) * 3
        """Degrees of freedom of all processes, constrained ones included."""
        self.dofs, self.points = space.dofs, space.points
        self.positions, self.weights = space.positions, space.weights
        """Of quadrature points: (points, 3) [mm], and (points,) [mm³] with the volume as their sum."""
        self.point_ids, self.dof_ids = space.point_ids, space.dof_ids
        """Global numbers, int64: input cell * points per cell + point; input node * 3 + component (order 1)."""
        self.fixed = self._constraints.fixed
        """Which owned degrees of freedom supports prescribe, (dofs,) bool."""

    @functools.cached_property
    def dof_weights(self) -> np.ndarray:
        """Positive lumped mass of density one (dofs,) [mm³], the weights of the L2 inner product; collective."""
        return lumped_mass(self._space)

    @functools.cached_property
    def lifts(self) -> np.ndarray:
        """Displacements (dofs, D): column j is one at prescribed displacement j, zero at the other supports and
        in elastic equilibrium between, with Poisson's ratio 0.3; collective.
        """
        columns = np.zeros((self.dofs, len(self.displacement_names)))
        self._space.tangent[:] = _isotropic(_LIFT_POISSON)
        self._space.set_displacement(np.zeros(self.dofs))
        if len(self.displacement_names):
            self._tangent.assemble()
        for j, unit in enumerate(np.eye(len(self.displacement_names))):
            jump = self._constraints.prescribe(unit)
            columns[:, j] = self._tangent.correction(np.zeros(self.dofs), jump)[0]
        return columns

    def strains(self, displacement: np.ndarray) -> np.ndarray:
        """Strains (points, 6) of a displacement (dofs,), or (points, 6, m) of m columns (dofs, m); collective."""
        columns = displacement.reshape(self.dofs, -1)
        found = np.empty((self.points, TENSOR, columns.shape[1]))
        for j, column in enumerate(columns.T):
            self._space.set_displacement(column)
            found[:, :, j] = self._space.strains()
        return found.reshape(self.points, TENSOR, *displacement.shape[1:])

    def internal_force(self, stress: np.ndarray) -> np.ndarray:
        """∫ σ:ε(v) dx of stresses (points, 6) as nodal forces (dofs,) [N], reactions included; collective."""
        return self._newton.internal_force(stress)

    def initial(self, law: Law) -> SolidState:
        """The undeformed body of virgin material."""
        return SolidState(np.zeros(self.dofs), law.initial(self.points), np.zeros((self.points, TENSOR)))

    def step(self, history: History, k: int, state: SolidState) -> tuple[SolidState, StepRecord]:
        """From times[k - 1] to times[k]; collective.

        Where Newton's method fails the step is halved, loads, prescribed displacements and temperature being those of
        the time in between, and substeps grow again after each that converges.

        Raises:
            SolveError: a substep of 1/256 of the step did not converge either.
            ValueError: a history with amplitudes for other loads or displacements, or no step k.
        """
        self._refuse_other_history(history, k)
        effort, done, size = Effort(), 0.0, 1.0
        substeps = cuts = 0
        while True:
            end = min(1.0, done + size)
            solved = self._newton.solve(self._increment(history, k, done, end, state), effort)
            if solved.state is not None:
                state, done, size, substeps = solved.state, end, 2 * size, substeps + 1
                if done == 1.0:
                    return state, self._record(history, k, effort, substeps, cuts, solved)
                continue
            size, cuts = 0.5 * (end - done), cuts + 1
            if size < _SMALLEST:
                raise self._failure(history, k, end, solved)

    def run(self, history: History, *, start: SolidState | None = None, observe: Observe | None = None) -> Trajectory:
        """All steps of a history, from `start` or from `initial`; `observe(k, state, record)` after each; collective.

        Raises:
            SolveError: as `step`.
            ValueError: as `step`.
        """
        processor, wall = time.process_time(), time.perf_counter()
        state = self.initial(history.law) if start is None else start
        displacement = np.empty((history.steps + 1, self.dofs))
        stress, p = np.empty((history.steps + 1, self.points, TENSOR)), np.empty((history.steps + 1, self.points))
        records: list[StepRecord] = []
        for k in range(history.steps + 1):
            if k > 0:
                state, record = self.step(history, k, state)
                records.append(record)
                if observe is not None:
                    observe(k, state, record)
            displacement[k], stress[k], p[k] = state.displacement, state.stress, _p(history.law, state.variables)
        seconds = time.process_time() - processor, time.perf_counter() - wall
        return Trajectory(history.times, displacement, stress, p, state, tuple(records), *seconds)

    def replay(
        self,
        history: History,
        displacements: np.ndarray,
        *,
        first: int = 0,
        start: SolidState | None = None,
        observe: Callable[[int, SolidState], None] | None = None,
    ) -> SolidState:
        """Run the law alone along given displacements (r + 1, dofs), row i at times[first + i]; collective.

        What a reduced trajectory says at all points, when it is asked for.  Row 0 is where `start` (None: `initial`)
        stands; `observe(k, state)` is called after step k.  No step is cut, so this equals a run whose steps were not.

        Raises:
            LawError: the law has no answer on this process.
            ValueError: more rows than times.
        """
        if not 1 <= len(displacements) <= history.steps + 1 - first:
            raise ValueError(
                f"{len(displacements)} rows of displacements from time {first} on, but the history has "
                f"{history.steps + 1} times"
            )
        law, state = history.law, self.initial(history.law) if start is None else start
        for k, displacement in enumerate(displacements[1:], start=first + 1):
            variables, stress = np.empty((self.points, width(law))), np.empty((self.points, TENSOR))
            self._space.set_displacement(displacement)
            strain = self._space.strains()
            if self.points:
                response = Response(stress, self._space.tangent, variables)
                temperature = history.temperature(self.positions, history.time_at(k, 1.0))
                dt = float(history.times[k] - history.times[k - 1])
                law.update(strain, temperature, dt, state.variables, response, tangent=False)
            state = SolidState(np.array(displacement), variables, stress)
            if observe is not None:
                observe(k, state)
        return state

    def gather(self, values: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
        """Owned rows of all processes in the order of their ids, on the first process; None on others; collective."""
        everyone = self.comm.gather((ids, values))
        if everyone is None:
            return None
        order = np.argsort(np.concatenate([ids for ids, _ in everyone]))
        return np.asarray(np.concatenate([values for _, values in everyone])[order])

    def destroy(self) -> None:
        """Free PETSc's objects; collective.  The model cannot solve afterwards."""
        self._tangent.destroy()

    def _increment(self, history: History, k: int, done: float, end: float, start: SolidState) -> Increment:
        at, before = history.time_at(k, end), history.time_at(k, done)
        return Increment(
            start,
            force=self.unit_loads @ history.loads_at(k, end),
            prescribed=history.displacements_at(k, end),
            temperature=history.temperature(self.positions, at),
            dt=at - before,
            law=history.law,
        )

    def _refuse_other_history(self, history: History, k: int) -> None:
        if not 1 <= k <= history.steps:
            raise ValueError(f"there is no step {k}: the history has steps 1 to {history.steps}")
        for what, amplitudes, names in (
            ("loads", history.loads, self.load_names),
            ("displacements", history.displacements, self.displacement_names),
        ):
            if amplitudes.shape[1] != len(names):
                raise ValueError(
                    f"the history has {amplitudes.shape[1]} columns of {what}, but model {self.name!r} has "
                    f"{len(names)}: {', '.join(names) or 'none'}"
                )

    def _record(self, history: History, k: int, effort: Effort, substeps: int, cuts: int, solved: Solved) -> StepRecord:
        return StepRecord(
            step=k,
            time=history.time_at(k, 1.0),
            iterations=effort.iterations,
            linear_iterations=effort.linear_iterations,
            substeps=substeps,
            cuts=cuts,
            backtracks=effort.backtracks,
            residuals=solved.residuals,
            seconds=dict(effort.seconds),
        )

    def _failure(self, history: History, k: int, end: float, solved: Solved) -> SolveError:
        reached = solved.residuals[-1] if solved.residuals else float("nan")
        at = history.time_at(k, end)
        return SolveError(
            f"step {k} of model {self.name!r} did not converge at t = {at:.6g} s, relative residual {reached:.1e}, "
            f"though it was cut to {_SMALLEST:.2g} of its length: {solved.reason}; check loads and temperatures "
            f"there, or give the history more times",
            step=k,
            time=at,
            residual=reached,
        )


def _p(law: Law, variables: np.ndarray) -> np.ndarray:
    if any(variable.name == "p" for variable in law.variables):
        return plastic_strain(law, variables)
    return np.zeros(len(variables))


def _isotropic(poisson: float) -> np.ndarray:
    """C (6, 6) for Young's modulus one."""
    stiffness = np.eye(TENSOR) / (1 + poisson)
    stiffness[:3, :3] += poisson / ((1 + poisson) * (1 - 2 * poisson))
    return stiffness
