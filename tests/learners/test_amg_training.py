import amg_cases
import numpy as np
import pytest
import torch

from forebay.kernels.amg import AmgSolver
from forebay.learners.amg_meshes import FAMILIES, coefficient, draws, grid_mesh, p1_mesh
from forebay.learners.amg_training import AmgMesh, AmgOptions, amg_step, convergence_loss, make_amg_state
from forebay.pipeline.errors import RunError


@pytest.fixture(scope="module")
def meshes():
    made = [p1_mesh(500, 2, np.random.default_rng(7)), grid_mesh(8, 3)]
    return made, [AmgMesh.of(amg_cases.symbolic_of(mesh.reference)) for mesh in made]


def batches(meshes, count, seed=7):
    drawn, prepared = meshes
    stream = draws(drawn, np.random.default_rng(seed), largest_contrast=1e2)
    return [[(prepared[k], matrix.data) for k, matrix in (next(stream) for _ in range(2))] for _ in range(count)]


def validation(state, meshes):
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        found = [
            float(convergence_loss(state.network, mesh, torch.from_numpy(values), generator, state.options))
            for batch in batches(meshes, 4, seed=13)
            for mesh, values in batch
        ]
    return np.mean(found)


def test_training_makes_unseen_matrices_converge_faster(meshes):
    state = make_amg_state(AmgOptions(steps=12, lr=0.1), seed=7)
    before = validation(state, meshes)
    for batch in batches(meshes, 12):
        state, metrics = amg_step(state, batch)
    assert state.steps == 12
    assert metrics.loss < 0
    assert validation(state, meshes) < before - 0.03


def test_the_loss_is_the_logarithm_of_iterations_that_reduce_the_energy_norm_by_e(meshes):
    mesh, prepared = meshes[0][0], meshes[1][0]
    matrix, options = mesh.reference, AmgOptions(iterations=3, warm=0, errors=1)
    state = make_amg_state(options, seed=7)
    generator = torch.Generator().manual_seed(13)
    loss = convergence_loss(state.network, prepared, torch.from_numpy(matrix.data), generator, options)
    generator = torch.Generator().manual_seed(13)
    rhs = torch.randn(mesh.unknowns, 1, generator=generator, dtype=torch.float64)[:, 0].numpy()
    solver, start = AmgSolver(matrix.indptr, matrix.indices, matrix.data, precision="float64"), np.empty(mesh.unknowns)
    solver.cycle(rhs, start)
    # Conjugate gradients minimise ‖e₀ - v‖_A over the Krylov space of B A, whatever the recurrence.
    space = [start]
    for _ in range(3):
        z = np.empty(mesh.unknowns)
        solver.cycle(matrix @ space[-1], z)
        space.append(z / np.linalg.norm(z))
    basis = np.column_stack(space[1:])
    error = start - basis @ np.linalg.solve(basis.T @ (matrix @ basis), basis.T @ (matrix @ start))
    expected = -np.log(-0.5 * np.log((error @ (matrix @ error)) / (start @ (matrix @ start))) / 3)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_training_follows_from_its_seed(meshes):
    found = []
    for _ in range(2):
        state = make_amg_state(AmgOptions(steps=3), seed=7)
        for batch in batches(meshes, 3):
            state, _ = amg_step(state, batch)
        found.append(state.network.export().digest)
    assert found[0] == found[1]


def test_training_goes_on_from_exported_weights(meshes):
    state = make_amg_state(AmgOptions(steps=3), seed=7)
    for batch in batches(meshes, 3):
        state, _ = amg_step(state, batch)
    again = make_amg_state(AmgOptions(), seed=11, start=state.network.export())
    assert again.network.export().digest == state.network.export().digest


def test_a_matrix_with_nan_is_skipped_and_ten_in_a_row_stop_the_run(meshes):
    _, prepared = meshes
    state = make_amg_state(AmgOptions(bad_batches=2), seed=7)
    before = state.network.export().digest
    broken = [(prepared[0], np.where(np.arange(len(prepared[0].symbolic.indices)) == 3, np.nan, 1.0))]
    state, metrics = amg_step(state, broken)
    assert metrics.skipped
    assert state.network.export().digest == before
    with pytest.raises(RunError, match=r"2 batches in a row up to batch 1 had a loss of nan .* lower its lr"):
        amg_step(state, broken)


def test_a_mesh_without_levels_cannot_be_trained_on():
    with pytest.raises(ValueError, match="a matrix of 36 unknowns is inverted as a whole; train on larger ones"):
        AmgMesh.of(amg_cases.symbolic_of(grid_mesh(8, 2).reference))


@pytest.mark.parametrize("family", FAMILIES)
def test_coefficients_are_positive_and_have_the_contrast(family):
    points = np.random.default_rng(7).random((4000, 2))
    values = coefficient(points, family, 1e4, np.random.default_rng(11))
    assert values.min() > 0
    contrast = values.max() / values.min()
    assert contrast == pytest.approx(1.0) if family == "constant" else 1e2 < contrast < 1e9


def test_meshes_reproduce_linear_functions():
    mesh = p1_mesh(400, 2, np.random.default_rng(7))
    whole = np.zeros((mesh.count, mesh.count))
    for nodes, element in zip(mesh.nodes, mesh.element, strict=True):
        whole[np.ix_(nodes, nodes)] += element
    assert np.abs(whole.sum(1)).max() < 1e-12
    scaled = whole[np.ix_(mesh.inner, mesh.inner)]
    np.testing.assert_allclose(mesh.reference.toarray(), scaled / scaled.diagonal().mean(), atol=1e-12)


def test_a_grid_has_the_five_point_matrix():
    row = grid_mesh(6, 2).reference.toarray()[5]
    assert row[5] == pytest.approx(1.0)
    assert sorted(np.round(row[row < 0], 12)) == [-0.25] * 4
