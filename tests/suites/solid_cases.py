"""Small solids, histories and laws that the tests of the solid model share."""

import importlib
import itertools

import numpy as np

from forebay.solvers.fem.mesh_arrays import MeshArrays, block
from forebay.solvers.fem.solid import SolidModel, Support, UnitLoad
from forebay.solvers.fem.solid_mesh import distribute
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import LawError, StateVariable
from forebay.solvers.petsc import petsc

SYMMETRY = (Support("x_min", "x"), Support("y_min", "y"), Support("z_min", "z"))
DETERMINATE = (
    Support("x_min & y_min & z_min", "xyz"),
    Support("x_max & y_min & z_min", "yz"),
    Support("x_min & y_max & z_min", "z"),
)
"""Six components at three corners: no rigid motion, and no stress from any uniform strain."""
PULL = UnitLoad("pull", "traction", "x_max", (1.0, 0.0, 0.0))


def alone():
    petsc()
    return importlib.import_module("mpi4py.MPI").COMM_SELF


def at(celsius):
    return lambda positions, time: np.full(len(positions), float(celsius))


def history(law, times, *, loads=None, displacements=None, temperature=None):
    """Columns of amplitudes over times; none are given as (s + 1, 0)."""
    times = np.asarray(times, dtype=float)
    none = np.zeros((len(times), 0))
    columns = [none if c is None else np.column_stack(c).astype(float) for c in (loads, displacements)]
    return History(times, *columns, temperature or at(20.0), law)


def steps(count, end=1.0):
    return np.linspace(0.0, end, count + 1)


def distorted_cube(shape="hexahedron", seed=13, cells=3):
    """[0, 1]³ with its inner nodes moved by up to a tenth of a cell."""

    def make():
        arrays = block((cells,) * 3, lambda points: points)
        inner = np.all((arrays.nodes > 1e-9) & (arrays.nodes < 1 - 1e-9), axis=1)
        shift = np.random.default_rng(seed).uniform(-0.1, 0.1, arrays.nodes.shape) / cells
        arrays.nodes[inner] += shift[inner]
        return arrays if shape == "hexahedron" else in_tetrahedra(arrays)

    return distribute(alone(), make)


def in_tetrahedra(arrays):
    """Kuhn's six tetrahedra in every hexahedron, all around its diagonal."""
    paths = [(0, 1 << i, (1 << i) + (1 << j), 7) for i, j, _ in itertools.permutations(range(3))]
    return MeshArrays(
        nodes=arrays.nodes,
        cells=arrays.cells[:, paths].reshape(-1, 4),
        shape="tetrahedron",
        degree=1,
        facets={
            name: np.sort(face, axis=1)[:, [[0, 1, 3], [0, 2, 3]]].reshape(-1, 3)
            for name, face in arrays.facets.items()
        },
    )


def uniaxial(mesh, **options):
    """Symmetry planes and a prescribed displacement of the opposite face."""
    return SolidModel(mesh, [*SYMMETRY, Support("x_max", "x", "stretch")], [], **options)


class Stiffening:
    """σ = E ε (1 + a |ε|²): nonlinear elastic, without Poisson effect; a law of one's own, with the least it needs."""

    name = "stiffening"
    variables = (StateVariable("energy", 1),)

    def __init__(self, young=1000.0, stiffening=0.0):
        self.constants = {"young": young, "stiffening": stiffening}

    def initial(self, points):
        return np.zeros((points, 1))

    def update(self, strain, temperature, dt, state, response, *, tangent=True):
        young, a = self.constants["young"], self.constants["stiffening"]
        square = (strain**2).sum(axis=1)
        response.stress[:] = young * (1 + a * square)[:, None] * strain
        response.state[:, 0] = young * (0.5 * square + 0.25 * a * square**2)
        if tangent:
            response.tangent[:] = 2 * young * a * strain[:, :, None] * strain[:, None, :]
            response.tangent[:] += young * (1 + a * square)[:, None, None] * np.eye(6)


class Fragile:
    """Another law that gives up where a step is longer than it can take, at some points."""

    def __init__(self, law, longest):
        self.law, self.longest, self.tried = law, longest, []
        self.name, self.constants, self.variables = law.name, law.constants, law.variables
        self.initial = law.initial

    def update(self, strain, temperature, dt, state, response, *, tangent=True):
        self.tried.append(dt)
        if dt > self.longest:
            raise LawError(f"a step of {dt} s is too long", np.array([3, 5]))
        self.law.update(strain, temperature, dt, state, response, tangent=tangent)
