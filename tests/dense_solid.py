"""A small solid of hexahedra in plain numpy, an independent full model for the tests of the reduced one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import Response, StateVariable
from forebay.solvers.rom.package import LawStamp, RomPackage

TRACE = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
DEVIATOR = np.eye(6) - np.outer(TRACE, TRACE) / 3
SHEARS = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Isotropic:
    """J2 plasticity with linear isotropic hardening in closed form; elastic with an infinite yield stress."""

    young: float = 200e3
    poisson: float = 0.3
    yield_stress: float = 200.0
    hardening: float = 4e3
    expansion: float = 1e-5

    name = "isotropic_test_law"
    variables = (StateVariable("plastic_strain", 6), StateVariable("p", 1))

    @property
    def constants(self):
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def initial(self, points):
        return np.zeros((points, 7))

    def update(self, strain, temperature, dt, state, response, *, tangent=True):
        shear, bulk = self.young / (2 + 2 * self.poisson), self.young / (3 - 6 * self.poisson)
        elastic = strain - self.expansion * np.outer(temperature - 20.0, TRACE) - state[:, :6]
        trial = 2 * shear * elastic @ DEVIATOR
        norm = np.maximum(np.linalg.norm(trial, axis=1), 1e-12)
        overstress = np.sqrt(1.5) * norm - self.yield_stress - self.hardening * state[:, 6]
        dp = np.maximum(overstress, 0.0) / (3 * shear + self.hardening)
        flow = np.sqrt(1.5) * trial / norm[:, None]
        response.stress[:] = trial - 2 * shear * dp[:, None] * flow + bulk * np.outer(elastic @ TRACE, TRACE)
        response.state[:, :6] = state[:, :6] + dp[:, None] * flow
        response.state[:, 6] = state[:, 6] + dp
        if tangent:
            radial = (2 * shear) ** 2 * np.sqrt(1.5) * dp / norm
            plastic = np.where(dp > 0, (2 * shear) ** 2 / (3 * shear + self.hardening), 0.0)
            along = flow[:, :, None] * flow[:, None, :]
            response.tangent[:] = bulk * np.outer(TRACE, TRACE) + 2 * shear * DEVIATOR
            response.tangent -= radial[:, None, None] * (DEVIATOR - along / 1.5) + plastic[:, None, None] * along


ELASTIC = Isotropic(yield_stress=1e12)


class DenseSolid:
    """A bar clamped at x = 0, pulled at x = L by prescribed displacements in x, with loads "side" and "lift" there."""

    def __init__(self, cells=(3, 2, 2), lengths=(3.0, 1.0, 1.2)):
        grid = [np.linspace(0, length, count + 1) for length, count in zip(lengths, cells, strict=True)]
        self.nodes = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, 3)
        number = np.arange(len(self.nodes)).reshape([count + 1 for count in cells])
        corners = np.array(list(itertools.product((0, 1), repeat=3)))
        bricks = [
            [number[tuple(np.array(cell) + corner)] for corner in corners]
            for cell in itertools.product(*map(range, cells))
        ]
        self._integrate(np.array(bricks), np.array(lengths) / cells, 2.0 * corners - 1.0)
        self._support(lengths[0])

    def _integrate(self, bricks, edges, corners):
        gauss = np.array(list(itertools.product((-1, 1), repeat=3))) / np.sqrt(3)
        factors = 1 + corners[None] * gauss[:, None]
        shapes = factors.prod(axis=2) / 8
        gradients = np.stack(
            [corners[:, a] / 8 * np.delete(factors, a, axis=2).prod(axis=2) * 2 / edges[a] for a in range(3)], axis=2
        )
        points = len(bricks) * len(gauss)
        self.weights = np.full(points, np.prod(edges) / 8)
        self.positions = np.einsum("ga,bax->bgx", shapes, self.nodes[bricks]).reshape(points, 3)
        operator = np.zeros((len(bricks), len(gauss), 6, len(self.nodes), 3))
        for b, brick in enumerate(bricks):
            for axis in range(3):
                operator[b, :, axis, brick, axis] = gradients[:, :, axis].T
            for row, (i, j) in enumerate(SHEARS, start=3):
                operator[b, :, row, brick, i] = gradients[:, :, j].T / np.sqrt(2)
                operator[b, :, row, brick, j] = gradients[:, :, i].T / np.sqrt(2)
        self.operator = operator.reshape(points, 6, -1)
        self.mass = np.repeat(np.bincount(bricks.ravel()) * np.prod(edges) / 8, 3)

    def _support(self, length):
        end = self.nodes[:, 0] > length - 1e-9
        fixed = np.zeros((len(self.nodes), 3), bool)
        fixed[self.nodes[:, 0] < 1e-9] = True
        fixed[end, 0] = True
        self.free = np.flatnonzero(~fixed.ravel())
        pulled = np.zeros((len(self.nodes), 3))
        pulled[end, 0] = 1.0
        self.loads = np.zeros((2, len(self.nodes), 3))
        self.loads[0, end, 1] = self.loads[1, end, 2] = 1.0 / end.sum()
        self.loads = self.loads.reshape(2, -1)
        response = self.respond(ELASTIC, pulled.ravel(), ELASTIC.initial(len(self.weights)))
        self.lift = pulled.ravel()
        self.lift[self.free] -= np.linalg.solve(self._stiffness(response), self._forces(response)[self.free])

    def respond(self, law, displacement, state, dt=1.0, temperature=None):
        response = Response.empty(law, len(self.weights))
        if temperature is None:
            temperature = np.full(len(self.weights), 20.0)
        law.update(self.operator @ displacement, temperature, dt, state, response)
        return response

    @staticmethod
    def respond_at(law, strain, temperature, state, dt=1.0):
        response = Response.empty(law, len(strain))
        law.update(strain, temperature, dt, state, response)
        return response

    def _forces(self, response):
        return np.einsum("p,pcd,pc->d", self.weights, self.operator, response.stress, optimize=True)

    def _stiffness(self, response):
        free = self.operator[:, :, self.free]
        rows = self.weights[:, None, None] * np.matmul(response.tangent, free)
        return free.reshape(-1, len(self.free)).T @ rows.reshape(-1, len(self.free))

    def run(self, history):
        """Displacement (s + 1, dofs), stress, p, strain over all points, and reactions (s + 1,), by dense Newton."""
        displacement = history.displacements[0, 0] * self.lift
        state = history.law.initial(len(self.weights))
        found = [(displacement, np.zeros((len(self.weights), 6)), state, 0.0)]
        for k in range(1, history.steps + 1):
            found.append(self._step(history, k, found[-1]))
        displacements, stress, states, reactions = (np.array(values) for values in zip(*found, strict=True))
        return SimpleNamespace(
            displacement=displacements, stress=stress, p=states[:, :, 6], states=states, reactions=reactions
        )

    def _step(self, history, k, last):
        displacement = last[0] + (history.displacements[k, 0] - history.displacements[k - 1, 0]) * self.lift
        temperature = history.temperature(self.positions, history.times[k])
        external = history.loads[k] @ self.loads
        for _ in range(30):
            dt = history.times[k] - history.times[k - 1]
            response = self.respond(history.law, displacement, last[2], dt, temperature)
            forces = self._forces(response)
            residual = (external - forces)[self.free]
            if np.linalg.norm(residual) < 1e-11 * np.linalg.norm(forces):
                reaction = (forces - external) @ self.lift
                return displacement, response.stress, response.state, reaction
            displacement = displacement.copy()
            displacement[self.free] += np.linalg.solve(self._stiffness(response), residual)
        raise AssertionError(f"the dense model did not converge in step {k}")

    def pod(self, runs, histories, modes):
        """Modes (dofs, n), zero where displacements are prescribed, orthonormal in L2; and modes of p (points, q)."""
        snapshots = np.hstack(
            [(r.displacement - h.displacements @ self.lift[None]).T for r, h in zip(runs, histories, strict=True)]
        )
        root = np.sqrt(self.mass[self.free])[:, None]
        found = np.zeros((len(self.lift), modes))
        found[self.free] = np.linalg.svd(root * snapshots[self.free], full_matrices=False)[0][:, :modes] / root
        p = np.hstack([run.p.T for run in runs])
        p_modes, values, _ = np.linalg.svd(p, full_matrices=False)
        return found, p_modes[:, values > 1e-3 * values[0]]

    def test_modes(self, modes, tail):
        """`tail` and the elastic answers to the loads, orthonormal in L2 also to the modes: nothing acts unseen."""
        response = self.respond(ELASTIC, np.zeros(len(self.lift)), ELASTIC.initial(len(self.weights)))
        answers = np.zeros((len(self.lift), len(self.loads)))
        answers[self.free] = np.linalg.solve(self._stiffness(response), self.loads[:, self.free].T)
        root = np.sqrt(self.mass)[:, None]
        return (np.linalg.qr(root * np.hstack([modes, tail, answers]))[0] / root)[:, modes.shape[1] :]

    def unit_modes(self):
        """One mode for each free degree of freedom."""
        return np.eye(len(self.lift))[:, self.free]

    def package(self, modes, law, *, extra=None, p_modes=None, chosen=None, **changes):
        """All points as the cubature with their full weights, `chosen` (numbers) as hot spots; `extra`: test modes."""
        columns = modes if extra is None else np.hstack([modes, extra])
        both = np.column_stack([columns, self.lift])
        p_modes = np.ones((len(self.weights), 1)) if p_modes is None else p_modes
        hot = np.array([], int) if chosen is None else np.asarray(chosen)
        values = {
            "problem": "dense_bar",
            "law": LawStamp.of(law),
            "modes": modes.shape[1],
            "strains": self.operator @ columns,
            "weights": self.weights,
            "positions": self.positions,
            "point_ids": np.arange(len(self.weights)),
            "loads": self.loads @ columns,
            "load_names": ("side", "lift"),
            "lift_strains": (self.operator @ self.lift)[:, :, None],
            "lift_loads": (self.loads @ self.lift)[:, None],
            "displacement_names": ("pull",),
            "gram": both.T @ (self.mass[:, None] * both),
            "p_modes": p_modes,
            "hot_p_modes": p_modes[hot],
            "hot_positions": self.positions[hot],
            "hot_point_ids": hot,
            "monitors": modes[-3:],
            "monitor_lifts": self.lift[-3:, None],
            "monitor_labels": ("tip x", "tip y", "tip z"),
            "displacement_scale": 0.01,
            "p_scale": 1e-3,
        }
        return RomPackage(**{**values, **changes})

    def norm(self, displacement):
        """L2."""
        return np.sqrt(np.sum(self.mass * displacement**2, axis=-1))


def room_temperature(positions, time):
    """20 °C."""
    return np.full(len(positions), 20.0)


def heated_tip(positions, time):
    """Warms up towards the end of the bar."""
    return 20.0 + 60.0 * time * positions[:, 0]


def history(law, *, pull=0.012, side=20.0, lift=0.0, steps=8, temperature=heated_tip):
    """Loads up and unloads by half; amplitudes in mm and N; two seconds."""
    times = np.linspace(0.0, 2.0, steps + 1)
    shape = np.where(times <= 1.4, times / 1.4, 1.0 - 0.5 * (times - 1.4) / 0.6)
    return History(
        times,
        np.column_stack([side * shape, lift * np.sin(times)]),
        (pull * shape)[:, None],
        temperature,
        law,
    )
