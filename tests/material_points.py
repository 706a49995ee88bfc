"""Helpers of the tests of material laws: random states, the equations again in plain numpy, a driver for one point."""

from __future__ import annotations

import numpy as np

from forebay.solvers.materials.law import Response, columns, width

ROOM = 20.0
"""Temperature at which the tests' laws have the constants they were given, [°C]."""
AXIAL = np.array([False, True, True, True, True, True])
"""Components under stress control in a tension test along x."""
IDENTITY = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
DEVIATORIC = np.eye(6) - np.outer(IDENTITY, IDENTITY) / 3


def update(law, strain, temperature, dt, state, *, tangent=True):
    """A fresh response; the temperature may be one number."""
    response = Response.empty(law, len(strain))
    law.update(strain, np.broadcast_to(temperature, len(strain)).copy(), dt, state, response, tangent=tangent)
    return response


def equivalent(tensors):
    """√(3/2) |dev|, (...)."""
    return np.sqrt(1.5) * np.linalg.norm(tensors @ DEVIATORIC, axis=-1)


def worked(law, points, rng, *, amplitude=4e-3, steps=3, dt=0.3):
    """State after some random steps at random temperatures: what a state that can occur looks like."""
    state = law.initial(points)
    for _ in range(steps):
        strain, temperature = rng.normal(size=(points, 6)) * amplitude, rng.uniform(50, 950, points)
        state = update(law, strain, temperature, dt, state, tangent=False).state
    return state


def differences(law, strain, temperature, dt, state, step=1e-8):
    """dσ/dε by central differences, (n, 6, 6)."""
    result = np.empty((len(strain), 6, 6))
    for j in range(6):
        shift = step * np.eye(6)[j]
        ahead, behind = (update(law, strain + s, temperature, dt, state, tangent=False).stress for s in (shift, -shift))
        result[:, :, j] = (ahead - behind) / (2 * step)
    return result


def drive(law, times, target, *, stress_controlled, temperature=ROOM, rtol=1e-12):
    """One point through times (s + 1,); target (s + 1, 6) is a stress [MPa] where controlled so, else a strain.

    Newton with the law's tangent; returns strains, stresses and states with s + 1 rows, the first of them zero.
    """
    controlled = np.asarray(stress_controlled)
    strain, state = np.zeros((1, 6)), law.initial(1)
    records = [(strain[0].copy(), np.zeros(6), state[0])]
    for k in range(1, len(times)):
        strain[0, ~controlled] = target[k, ~controlled]
        for _ in range(60):
            response = update(law, strain, temperature, times[k] - times[k - 1], state)
            residual = (response.stress[0] - target[k])[controlled]
            if np.linalg.norm(residual) <= rtol * max(1.0, np.linalg.norm(response.stress)):
                break
            block = response.tangent[0][np.ix_(controlled, controlled)]
            strain[0, controlled] -= np.linalg.solve(block, residual) if len(block) else 0.0
        else:
            raise AssertionError(f"no strain at step {k} gives the stress: residual {residual}")
        state = response.state
        records.append((strain[0].copy(), response.stress[0], state[0]))
    return tuple(np.array(rows) for rows in zip(*records, strict=True))


def tension(law, times, strain, *, temperature=ROOM):
    """Uniaxial stress along x under a prescribed axial strain (s + 1,): axial stress (s + 1,) and states."""
    target = np.zeros((len(times), 6))
    target[:, 0] = strain
    _, stress, state = drive(law, times, target, stress_controlled=AXIAL, temperature=temperature)
    return stress[:, 0], state


def variable(law, state, name):
    """Columns of a state array that hold one variable."""
    assert state.shape[-1] == width(law)
    return state[..., columns(law, name)]


def rotation(rng):
    """A random rotation, (3, 3)."""
    orthogonal, triangular = np.linalg.qr(rng.normal(size=(3, 3)))
    orthogonal *= np.sign(np.diag(triangular))
    orthogonal[:, 0] *= np.linalg.det(orthogonal)
    return orthogonal


def to_matrix(vectors):
    """Mandel (..., 6) to (..., 3, 3)."""
    xx, yy, zz, xy, xz, yz = np.moveaxis(vectors, -1, 0)
    xy, xz, yz = xy / np.sqrt(2), xz / np.sqrt(2), yz / np.sqrt(2)
    return np.stack([np.stack(row, -1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))], -2)


def to_vector(matrices):
    """(..., 3, 3) to Mandel (..., 6)."""
    root = np.sqrt(2)
    m = matrices
    shear = [root * m[..., 0, 1], root * m[..., 0, 2], root * m[..., 1, 2]]
    return np.stack([m[..., 0, 0], m[..., 1, 1], m[..., 2, 2], *shear], -1)
