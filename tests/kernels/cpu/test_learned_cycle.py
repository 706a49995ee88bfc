"""Learned weights on the CPU: the formula as torch evaluates it, and the guard that drops them where they lose."""

import numpy as np
import pytest
from cpu_systems import grid_system

from forebay.kernels.cpu import GridSolver, batch, solve_batch
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.guard import Decision
from forebay.kernels.records import Outcome


def weights_of(dimension, seed=11, size=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"hidden": (2, 6, 8), "hidden_bias": (2, 6), "smoother": (2, 6), "smoother_bias": (2,), "gate": (2, 6)}
    arrays = {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return GridWeights(dimension=dimension, **arrays)


def poor_weights(dimension):
    """s near 0 everywhere: hardly any smoothing."""
    zero = weights_of(dimension, size=0.0)
    return GridWeights(dimension=dimension, **{**zero.arrays, "smoother_bias": np.full(2, -200.0, np.float32)})


@pytest.mark.parametrize("contrast", [10.0, 1e5])
@pytest.mark.parametrize("shape", [(21, 18), (1, 90), (9, 13, 10)])
def test_smoother_and_transfers_are_those_of_the_torch_rule(shape, contrast):
    torch = pytest.importorskip("torch")
    from forebay.kernels.grid_network import GridNetwork
    from forebay.kernels.multigrid import build_hierarchy
    from forebay.kernels.stencil import Stencil

    system, weights = grid_system(shape, contrast=contrast), weights_of(len(shape))
    solver = GridSolver(shape, preconditioner=weights, guard=False)
    solver.setup(system.faces, system.reaction)
    assert solver.label == "learned"
    faces = tuple(torch.from_numpy(face)[None] for face in system.faces)
    stencil = Stencil(faces, torch.from_numpy(system.reaction)[None])
    expected = build_hierarchy(stencil, GridNetwork.from_weights(weights))
    for level, reference in zip(solver.hierarchy(), expected.levels, strict=True):
        for name, values in level.items():
            wanted = getattr(reference, name)[0].detach().numpy()
            assert abs(values - wanted).max() <= 2e-5 * abs(wanted).max(), name


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("shape", [(13, 10), (5, 6, 7)])
def test_the_cycle_is_symmetric_positive_definite_for_any_weights(shape, sweeps):
    system = grid_system(shape, contrast=1e4)
    solver = GridSolver(shape, preconditioner=weights_of(len(shape), size=30.0), sweeps=sweeps, guard=False)
    solver.setup(system.faces, system.reaction)
    dense = np.empty((system.rhs.size,) * 2)
    for row, unit in zip(dense, np.eye(len(dense)), strict=True):
        z = np.empty(shape)
        solver.cycle(unit.reshape(shape), z)
        row[:] = z.ravel()
    root = np.sqrt(system.matrix.diagonal())
    scaled = root[:, None] * dense * root
    assert abs(scaled - scaled.T).max() < 1e-4 * abs(scaled).max()
    assert np.linalg.eigvalsh((scaled + scaled.T) / 2)[0] > 0


def test_poor_weights_are_dropped_by_the_probe_of_a_batch():
    systems = [grid_system((40, 33), seed=seed) for seed in (7, 11, 13)]
    faces = [np.stack(axis) for axis in zip(*(system.faces for system in systems), strict=True)]
    reaction, rhs = np.stack([s.reaction for s in systems]), np.stack([s.rhs for s in systems])
    fields, results = solve_batch(faces, reaction, rhs, preconditioner=poor_weights(2), threads=2)
    classical, plain = solve_batch(faces, reaction, rhs)
    assert [result.label for result in results] == ["multigrid(guard)"] * 3
    assert [result.iterations for result in results] == [result.iterations for result in plain]
    assert (fields == classical).all()


def test_one_verdict_of_the_probe_holds_for_the_whole_batch_on_every_thread(monkeypatch):
    systems = [grid_system((24, 20), seed=seed) for seed in range(7, 12)]
    faces = [np.stack(axis) for axis in zip(*(system.faces for system in systems), strict=True)]
    reaction, rhs = np.stack([s.reaction for s in systems]), np.stack([s.rhs for s in systems])
    monkeypatch.setattr(batch, "decide", lambda *_, **__: Decision(True, 0.5, "by decree"))
    for threads in (1, 3):
        _, results = batch.solve_batch(faces, reaction, rhs, preconditioner=poor_weights(2), threads=threads)
        assert [result.label for result in results] == ["learned"] * 5


def test_poor_weights_alone_are_slow_which_is_what_the_probe_measures():
    system = grid_system((40, 33))
    solver, field = GridSolver((40, 33), preconditioner=poor_weights(2), guard=False), np.empty((40, 33))
    solver.setup(system.faces, system.reaction)
    learned = solver.solve(system.rhs, field)
    plain = GridSolver((40, 33))
    plain.setup(system.faces, system.reaction)
    assert learned.outcome is Outcome.CONVERGED
    assert learned.iterations > 2 * plain.solve(system.rhs, field).iterations
    of_learned, of_classical = solver.contractions()
    assert of_classical < 0.1
    assert 0.3 < of_learned < 1


def test_in_a_stream_the_classical_cycle_serves_until_a_probe_is_paid_for():
    system = grid_system((24, 20))
    solver, field = GridSolver((24, 20), preconditioner=poor_weights(2)), np.empty((24, 20))
    for _ in range(60):
        solver.setup(system.faces, system.reaction)
        result = solver.solve(system.rhs, field)
        assert result.label == "multigrid(guard)"
        assert result.outcome is Outcome.CONVERGED
    assert solver.probation.spent > 0
    assert solver.probation.spent <= 0.05 * solver.probation.solved + 12
    assert "slower" in solver.probation.decision.reason


def test_weights_for_another_dimension_are_refused():
    with pytest.raises(ValueError, match="2-dimensional grids, this one has 3 axes"):
        GridSolver((5, 5, 5), preconditioner=weights_of(2))
