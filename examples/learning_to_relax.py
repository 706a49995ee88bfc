"""The relaxation parameter ω, learned while a simulation runs.   ∂u/∂t = C(t) Δu + f(t, x)  on (0, 1)², u = 0 outside

Crank-Nicolson gives a linear system a step, (1 - Δt C Δ/2) uᵐ⁺¹ = (1 + Δt C Δ/2) uᵐ + Δt f, whose best ω moves with C.
It is solved by SOR, or by conjugate gradients with symmetric SOR as preconditioner, to ‖b - A u‖ <= 1e-8 ‖b‖ from the
previous state.  A bandit chooses ω from {1, 1.05 ... 1.95} before each step and is told only the iterations it took.

Reproduces the heat equation of Khodak, Chow, Balcan & Talwalkar, "Learning to Relax", ICLR 2024 (arXiv 2310.02246), as
their published scripts have it: C(t) = max(sin(2πt)/10, -10 sin(2πt)), Δt = 1e-3, a bump of heat in the middle at
first, and a source of a quarter of its area that goes round eight times in a unit of time.
Differs from it:
- 2000 steps instead of 5000, on 25 x 25 cells, about its smallest grid; it goes up to 400 x 400 (`--steps`, `--size`);
- finite volumes (unknowns at cell centres) instead of finite differences;
- SOR runs through the same simulation; the source has it on random systems, and SSOR-CG here;
- every ω solves every system, so that the best in hindsight is known exactly; all strategies are then scored on that
  table.  In the source each strategy marches by its own solutions, which differ by the tolerance;
- the context is √C, with which iterations grow nearly linearly, instead of C; both learners differ from the source's
  as their docstrings say, and Forebay's own selector runs beside them.

Total iterations relative to the best fixed ω, at 25 x 25 (SSOR-CG at 50 x 50 in brackets): ω = 1 1.45 for SOR, 1.12
(1.42) for SSOR-CG; Tsallis-INF 1.09, 1.07 (1.10); contextual 0.76, 0.87 (0.87); best ω of each step 0.69, 0.82 (0.81).

Run it: `python examples/learning_to_relax.py --output learning_to_relax.html`.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from forebay.solvers.assemble import CsrSystem
from forebay.solvers.grid import Grid
from forebay.solvers.krylov.bandit import ArmSelector
from forebay.solvers.krylov.contextual import Contextual
from forebay.solvers.krylov.tsallis_inf import TsallisInf
from forebay.solvers.petsc import petsc

OMEGAS = np.linspace(1.0, 1.95, 20)
METHODS = {"SOR": ("richardson", "pc_sor_forward"), "SSOR-CG": ("cg", "pc_sor_symmetric")}
RTOL, MAX_ITERATIONS, TRIALS = 1e-8, 10_000, 3
LARGEST = 10.0

Learn = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def coefficient(t: np.ndarray | float) -> Any:
    """C(t) in [0, 10]: half of each period nearly nothing, half of it strong diffusion."""
    wave = np.sin(2 * np.pi * t)
    return np.maximum(0.1 * wave, -LARGEST * wave)


def bump(grid: Grid, x: float, y: float, radius: float) -> np.ndarray:
    """A smooth hill of height 1 with compact support, (n²,)."""
    square = ((grid.centres - x) ** 2 + (grid.centres[:, None] - y) ** 2) / radius**2
    inside = square < 1
    hill = np.zeros(grid.shape)
    hill[inside] = np.exp(1 - 1 / (1 - square[inside]))
    return hill.ravel()


class Relaxation:
    """One PETSc solver per ω on a shared matrix; serial."""

    def __init__(self, matrix: Any, method: str) -> None:
        self._solvers = [self._solver(matrix, method, float(omega)) for omega in OMEGAS]
        self._x = matrix.createVecRight()

    @staticmethod
    def _solver(matrix: Any, method: str, omega: float) -> Any:
        PETSc = petsc()
        ksp_type, sweep = METHODS[method]
        ksp = PETSc.KSP().create(PETSc.COMM_SELF)
        ksp.setOptionsPrefix(f"{method}_{omega:.2f}_")
        ksp.setOperators(matrix)
        ksp.setType(ksp_type)
        options = PETSc.Options(ksp.getOptionsPrefix())
        for name, value in {"pc_type": "sor", "pc_sor_omega": omega, sweep: True}.items():
            options.setValue(name, value)
        ksp.setFromOptions()
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        ksp.setInitialGuessNonzero(True)
        # Without a monitor, Richardson hands all its iterations to the preconditioner, which never looks at the norm.
        ksp.setMonitor(lambda *_: None)
        return ksp

    def iterations(self, rhs: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of every ω (20,), and the last one's solution (n,)."""
        right, atol = petsc().Vec().createWithArray(rhs, comm=petsc().COMM_SELF), RTOL * float(np.linalg.norm(rhs))
        counts = np.empty(len(OMEGAS), dtype=int)
        for k, ksp in enumerate(self._solvers):
            self._x.setArray(guess)
            ksp.setTolerances(rtol=1e-50, atol=atol, max_it=MAX_ITERATIONS)
            ksp.solve(right, self._x)
            if ksp.getConvergedReason() < 0:
                raise RuntimeError(f"ω = {OMEGAS[k]:.2f} failed ({ksp.getConvergedReason()}); raise MAX_ITERATIONS")
            counts[k] = ksp.getIterationNumber()
        right.destroy()
        return counts, self._x.getArray().copy()


def simulate(size: int, steps: int, dt: float) -> Iterator[dict[str, np.ndarray]]:
    """March, and yield for each step the iterations of every method and ω."""
    grid = Grid(size)
    system = CsrSystem(*grid.stencil.pattern, lambda draw, values, rhs: None, symmetry="spd")
    solvers = {method: Relaxation(system.matrix, method) for method in METHODS}
    u = bump(grid, 0.5, 0.5, 0.25)
    for step in range(steps):
        t = (step + 0.5) * dt
        np.multiply(grid.stencil.laplacian, 0.5 * dt * coefficient(t) / grid.h**2, out=system.values)
        system.values[grid.stencil.diagonal] += 1
        system.touch()
        angle = 16 * np.pi * t
        source = 32 * bump(grid, 0.5 + np.cos(angle) / 4, 0.5 + np.sin(angle) / 4, 0.125)
        state, product = system.matrix.createVecs()
        state.setArray(u)
        system.matrix.mult(state, product)
        rhs = 2 * u - product.getArray() + dt * source
        counts = {}
        for method, relaxation in solvers.items():
            counts[method], solution = relaxation.iterations(rhs, u)
        u = solution
        yield counts


def with_tsallis(table: np.ndarray, contexts: np.ndarray, seed: int) -> np.ndarray:
    """Iterations spent at each step; the context is not used."""
    bandit, spent = TsallisInf(len(OMEGAS), seed=seed), []
    for row in table.tolist():
        arm = bandit.choose()
        bandit.observe(arm, row[arm])
        spent.append(row[arm])
    return np.array(spent)


def with_contextual(table: np.ndarray, contexts: np.ndarray, seed: int) -> np.ndarray:
    """Iterations spent at each step, the coefficient known before."""
    bandit, spent = Contextual(len(OMEGAS), 1, seed=seed), []
    for row, context in zip(table.tolist(), contexts, strict=True):
        arm = bandit.choose([context])
        bandit.observe(arm, row[arm], [context])
        spent.append(row[arm])
    return np.array(spent)


def with_selector(features: int) -> Learn:
    """Forebay's own choice, as `method = "auto"` makes it between solvers; solves stopped at a cap are paid for."""

    def learn(table: np.ndarray, contexts: np.ndarray, seed: int) -> np.ndarray:
        selector, spent = ArmSelector(len(OMEGAS), seed=seed, features=features), []
        for row, context in zip(table.tolist(), contexts, strict=True):
            arm, total, solved = selector.choose([context][:features]), 0.0, False
            while not solved:
                cap = selector.cap(arm)
                solved = cap is None or row[arm] <= cap
                took = float(row[arm]) if solved or cap is None else cap
                selector.observe(arm, took, converged=solved)
                total += took
                arm = arm if solved else selector.ranking()[0]
            spent.append(total)
        return np.array(spent)

    return learn


LEARNERS: dict[str, Learn] = {
    "Tsallis-INF": with_tsallis,
    "contextual": with_contextual,
    "selector": with_selector(0),
    "selector, contextual": with_selector(1),
}


def strategies(table: np.ndarray, contexts: np.ndarray) -> dict[str, np.ndarray]:
    """Iterations at each step (steps,), learners as the mean of their trials; table (steps, 20)."""
    table = np.maximum(table, 1)
    best = int(table.sum(axis=0).argmin())
    found = {
        "ω = 1": table[:, 0],
        "ω = 1.5": table[:, 10],
        f"best fixed ω ({OMEGAS[best]:.2f})": table[:, best],
        "best ω of each step": table.min(axis=1),
    }
    for name, learn in LEARNERS.items():
        found[name] = np.mean([learn(table, contexts, 101 + trial) for trial in range(TRIALS)], axis=0)
    return found


def run(size: int, steps: int, dt: float) -> dict[str, dict[str, np.ndarray]]:
    """Iterations a step by method and strategy."""
    counts = list(simulate(size, steps, dt))
    contexts = 2 * np.sqrt(coefficient((np.arange(steps) + 0.5) * dt) / LARGEST) - 1
    return {method: strategies(np.array([step[method] for step in counts]), contexts) for method in METHODS}


def print_table(results: dict[str, dict[str, np.ndarray]]) -> None:
    """Total iterations, and their ratio to the best fixed ω."""
    for method, found in results.items():
        reference = next(spent.sum() for name, spent in found.items() if name.startswith("best fixed"))
        print(f"{method:24s}{'iterations':>12s}{'/ best fixed':>14s}")
        for name, spent in found.items():
            print(f"  {name:22s}{spent.sum():12.0f}{spent.sum() / reference:14.3f}")


def plot(results: dict[str, dict[str, np.ndarray]]) -> go.Figure:
    """Accumulated iterations against steps, one panel a method."""
    colours = ("#8a94a6", "#5aa9e6", "#222222", "#bbbbbb", "#d9730d", "#a3262a", "#0b5cad", "#2a8a4a")
    figure = make_subplots(rows=1, cols=len(results), subplot_titles=list(results))
    for column, (method, found) in enumerate(results.items(), start=1):
        for (name, spent), colour in zip(found.items(), colours, strict=True):
            line = {"color": colour, "dash": "dash" if name.startswith(("ω", "best")) else "solid"}
            figure.add_scatter(y=np.cumsum(spent), name=f"{method}: {name}", line=line, row=1, col=column)
        figure.update_xaxes(title_text="step", row=1, col=column)
    figure.update_yaxes(title_text="iterations so far", row=1, col=1)
    return figure.update_layout(template="plotly_white", title_text="Learning the relaxation parameter")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learn the relaxation parameter while a simulation runs.")
    parser.add_argument("--steps", type=int, default=2000, help="time steps")
    parser.add_argument("--dt", type=float, default=1e-3, help="length of a time step; C has the period 1")
    parser.add_argument("--size", type=int, default=25, help="cells a side")
    parser.add_argument("--output", type=Path, help="write the plot to this HTML file")
    options = parser.parse_args(arguments)
    results = run(options.size, options.steps, options.dt)
    print_table(results)
    if options.output is not None:
        plot(results).write_html(options.output)


if __name__ == "__main__":
    main()
