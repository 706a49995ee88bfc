"""The history of the dense solid that its reduced models are trained with, and a law that makes their steps fail."""

import dataclasses
import functools

import numpy as np
from dense_solid import DenseSolid, Isotropic, history

from forebay.solvers.materials.law import LawError, StateVariable

SOLID = DenseSolid()
LAW = Isotropic()
HISTORY = history(LAW)


@functools.cache
def full_run():
    return SOLID.run(HISTORY)


@functools.cache
def six_modes():
    return SOLID.pod([full_run()], [HISTORY], 6)


@dataclasses.dataclass(frozen=True)
class Fragile(Isotropic):
    """Fails where the strain increment of a step is too large; the state keeps the last strain."""

    largest: float = 1e9

    name = "fragile_test_law"
    variables = (*Isotropic.variables, StateVariable("last_strain", 6))

    def initial(self, points):
        return np.zeros((points, 13))

    def update(self, strain, temperature, dt, state, response, *, tangent=True):
        too_large = np.abs(strain - state[:, 7:]).max(axis=1) > self.largest
        if too_large.any():
            raise LawError(f"{too_large.sum()} points jump", np.flatnonzero(too_large))
        inner = dataclasses.replace(response, state=response.state[:, :7])
        super().update(strain, temperature, dt, state[:, :7], inner, tangent=tangent)
        response.state[:, 7:] = strain
