import amg_cases
import numpy as np
import pytest
import torch

from forebay.kernels.amg import CLASSICAL, AmgSolver
from forebay.kernels.amg.network import AmgNetwork, TensorCycle, TensorPlan, features
from forebay.kernels.amg.numbers import FEATURES, LEVEL_FEATURE
from forebay.learners.amg_meshes import grid_mesh


def test_a_new_network_is_the_classical_cycle():
    network = AmgNetwork(generator=torch.Generator().manual_seed(7))
    omega, damping = network(torch.randn(9, FEATURES, generator=torch.Generator().manual_seed(11), dtype=torch.float64))
    for values in (omega, damping):
        np.testing.assert_allclose(values.detach(), 4 / 3, rtol=1e-6)
    assert sum(p.numel() for p in network.parameters()) == 98


@pytest.mark.parametrize("name", ["triangles", "7-point"])
def test_the_differentiable_cycle_is_the_compiled_one(name):
    mesh = amg_cases.meshes()[name]
    matrix = mesh.draw("two_valued", 1e3, np.random.default_rng(13))
    weights = amg_cases.random_weights(7)
    solver = AmgSolver(
        matrix.indptr, matrix.indices, mesh.reference.data, weights=weights, guard=False, precision="float64"
    )
    solver.setup(matrix.data)
    plans = [TensorPlan.of(plan) for plan in solver.symbolic.levels]
    cycle = TensorCycle(solver.symbolic, plans, AmgNetwork.restore(weights), torch.from_numpy(matrix.data))
    r = np.random.default_rng(7).standard_normal((mesh.unknowns, 2))
    z = np.empty_like(r)
    solver.cycle(r, z)
    np.testing.assert_allclose(cycle(torch.from_numpy(r)).detach(), z, atol=1e-12 * np.abs(z).max())


def test_features_have_no_scale_and_no_order():
    mesh = amg_cases.meshes()["triangles"]
    matrix = mesh.draw("white", 1e3, np.random.default_rng(7))
    plan = TensorPlan.of(amg_cases.symbolic_of(mesh.reference).levels[0])
    first, *_ = features(plan, torch.from_numpy(matrix.data))
    second, *_ = features(plan, torch.from_numpy(1e6 * matrix.data))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert float(first.abs().max()) <= 4.0
    assert float(first[:, np.arange(FEATURES) != LEVEL_FEATURE].std(0).min()) > 0.01, "a feature that says nothing"


def test_features_tell_the_finest_level_from_the_others():
    symbolic = amg_cases.symbolic_of(grid_mesh(30, 2).reference)
    assert len(symbolic.levels) > 1
    for number, level in enumerate(symbolic.levels):
        found, *_ = features(TensorPlan.of(level), torch.ones(len(level.indices), dtype=torch.float64))
        assert set(found[:, LEVEL_FEATURE].tolist()) == {float(number > 0)}


def test_a_feature_tells_how_much_of_a_row_couples_within_its_aggregate():
    plan = amg_cases.symbolic_of(amg_cases.meshes()["triangles"].reference).levels[0]
    values = np.random.default_rng(7).uniform(-2.0, -1.0, len(plan.indices))
    found, l1, _ = features(TensorPlan.of(plan), torch.from_numpy(values))
    for i in range(0, plan.unknowns, 17):
        entries = np.arange(plan.indptr[i], plan.indptr[i + 1])
        own = plan.aggregate[plan.indices[entries]] == plan.aggregate[i]
        linked = entries[own & (plan.strong[entries] == 1)]
        assert float(found[i, 6]) == pytest.approx(2 * np.abs(values[linked]).sum() / float(l1[i]))
        reached = set(plan.aggregate[plan.source[entries]].tolist())
        assert float(found[i, 7]) == pytest.approx(2 / len(reached))


def test_gradients_reach_every_parameter_and_are_those_of_finite_differences():
    mesh = grid_mesh(30, 2)
    symbolic = amg_cases.symbolic_of(mesh.reference)
    plans = [TensorPlan.of(plan) for plan in symbolic.levels]
    network = AmgNetwork.restore(amg_cases.random_weights(7, 0.5))
    values = torch.from_numpy(mesh.draw("log_normal", 1e2, np.random.default_rng(7)).data)
    r = torch.from_numpy(np.random.default_rng(11).standard_normal((mesh.unknowns, 1)))

    def energy():
        return (r * TensorCycle(symbolic, plans, network, values)(r)).sum()

    energy().backward()
    generator = torch.Generator().manual_seed(13)
    for parameter in network.parameters():
        assert bool((parameter.grad != 0).all())
        towards = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            found = []
            for step in (1e-5, -1e-5):
                parameter += step * towards
                found.append(float(energy()))
                parameter -= step * towards
        slope = (found[0] - found[1]) / 2e-5
        assert slope == pytest.approx(float((parameter.grad * towards).sum()), rel=1e-4)


def test_exported_weights_are_float32_and_come_back():
    network = AmgNetwork.restore(amg_cases.random_weights(7))
    back = AmgNetwork.restore(network.export(5))
    assert network.export(5).version == 5
    for one, other in zip(network.parameters(), back.parameters(), strict=True):
        assert torch.equal(one, other)
    assert AmgNetwork(0).export().digest == CLASSICAL.digest


def test_a_plan_of_several_candidates_is_refused():
    matrix, motions = amg_cases.stiffness(120)
    symbolic = amg_cases.symbolic_of(matrix, candidates=motions, block_size=2, threshold=0.0)
    with pytest.raises(ValueError, match="a plan of 3 candidates; training takes matrices of one unknown a node"):
        TensorPlan.of(symbolic.levels[0])
