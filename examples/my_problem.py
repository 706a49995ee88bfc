"""A problem of your own: heat lost from an anisotropic plate.   -∂ₓ(kx ∂ₓu) - ∂ᵧ(ky ∂ᵧu) + s u = f  on (0, 1)²

with Robin sides k ∂u/∂n + β u = 0, on n × n finite volumes.  The study names it as "my_problem.py:MyProblem"; every
field of the dataclass is an option of its [problem] table.  A sample is: `draw` -> `assemble` -> solve -> `fields`.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema

RANGES = {"kx": (0.1, 10, "W/K"), "ky": (0.1, 10, "W/K"), "s": (1, 100, "W/m2/K"), "beta": (0.1, 10, "W/m/K")}


@dataclass(frozen=True)
class MyProblem:
    n: int = 48
    symmetry = "spd"  # what A is: "spd" (Cholesky and CG work), "symmetric" or "general"

    @property
    def schema(self) -> Schema:  # the scalar parameters are drawn for you
        plane, x = (("y", "x"), (self.n, self.n)), (np.arange(self.n) + 0.5) / self.n
        return Schema(
            parameters=tuple(Parameter(name, *ends, "log_uniform") for name, ends in RANGES.items()),
            inputs=(Field("f", *plane, "W/m2", "heat source"),),
            outputs=(Field("u", *plane, "K", "temperature above that of the surroundings"),),
            coordinates=(Coordinate("x", ("x",), x, "m"), Coordinate("y", ("y",), x, "m")),
            boundary_conditions="Robin: k du/dn + beta u = 0",
        )

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        x = (np.arange(self.n) + 0.5) / self.n  # use `rng` only: then every machine draws the same sample
        spots = [np.outer(np.exp(-50 * (x - b) ** 2), np.exp(-50 * (x - a) ** 2)) for a, b in rng.random((3, 2))]
        return {"f": np.tensordot(rng.uniform(50, 150, 3), spots, axes=1)}

    @functools.cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """The sparsity, and the values in it of -∂ₓₓ, -∂ᵧᵧ, of 1, and of the cells along the x and the y sides."""
        one, ends = sp.eye_array(self.n), sp.diags_array(np.eye(self.n)[0] + np.eye(self.n)[-1])
        second = (sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(self.n, self.n)) - ends) * self.n**2
        parts = [sp.kron(one, second), sp.kron(second, one), sp.kron(one, one), sp.kron(one, ends), sp.kron(ends, one)]
        whole = sp.csr_array(abs(parts[0]) + abs(parts[1]) + parts[2])
        return whole.indptr, whole.indices, [sp.csr_array(part)[whole.tocoo().coords] for part in parts]

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        return self._parts[:2]  # CSR row pointers and sorted columns, the same for all samples

    def assemble(self, draw: dict[str, np.ndarray], values: np.ndarray, rhs: np.ndarray) -> None:
        kx, ky, s, beta = draw["parameters"]  # write the matrix's values and the right-hand side, in place
        x_side, y_side = (self.n * beta * k / (k + beta / (2 * self.n)) for k in (kx, ky))  # loss through a side
        values[:] = np.tensordot([kx, ky, s, x_side, y_side], self._parts[2], axes=1)
        rhs[:] = draw["f"].ravel()

    def fields(self, draw: dict[str, np.ndarray], solution: np.ndarray) -> dict[str, np.ndarray]:
        return {"u": solution.reshape(self.n, self.n)}
