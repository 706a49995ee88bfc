import math

import pytest
import torch
from grid_levels import iterations, rough, rough_stencil

from forebay.kernels import grid_probe
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_probe import guarded_hierarchy, probe
from forebay.kernels.guard import PROBE_STEPS, Costs, Decision, Probation, contraction, decide
from forebay.kernels.multigrid import CLASSICAL, ClassicalRule, build_hierarchy
from forebay.kernels.stencil import diffusion


@pytest.mark.parametrize(
    ("learned", "classical", "cost", "kept", "ratio"),
    [
        (0.1, 0.2, 1.0, True, math.log(0.2) / math.log(0.1)),
        (0.2, 0.2, 1.0, True, 1.0),
        (0.2, 0.2, 1.01, False, 1.01),
        (0.3, 0.2, 1.0, False, math.log(0.2) / math.log(0.3)),
        (0.04, 0.2, 2.1, False, 1.05),
        (1.0, 0.9, 1.0, False, math.inf),
        (math.nan, 0.9, 1.0, False, math.inf),
        (0.9, 1.3, 1.0, True, 0.0),
        (0.0, 0.0, 1.0, True, 1.0),
    ],
)
def test_the_verdict_is_the_time_for_the_same_reduction(learned, classical, cost, kept, ratio):
    decision = decide(learned, classical, cost_ratio=cost)
    assert decision.learned is kept
    assert decision.ratio == pytest.approx(ratio)


def test_the_reason_names_both_contractions():
    assert decide(0.3, 0.2).reason == "learned slower than classical: contraction 0.3 against 0.2, time x 1.34"
    assert "does not converge: contraction 1.2" in decide(1.2, 0.5).reason


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan, math.inf])
def test_a_cost_that_is_no_ratio_is_refused(cost):
    with pytest.raises(ValueError, match="ratio of times and must be positive"):
        decide(0.1, 0.2, cost_ratio=cost)


def test_contraction_leaves_the_first_steps_out():
    assert contraction([1.0, 1e-3, 1e-4, 1e-6, 1e-8]) == pytest.approx(0.1)


def test_contraction_of_a_solved_system_is_zero_and_of_a_broken_one_nan():
    assert contraction([1.0, 1e-12, 1e-20, -1e-19, 3e-19]) == 0
    assert contraction([0.0] * 5) == 0
    assert math.isnan(contraction([1.0, 0.1, math.inf, 0.1, 0.1]))
    assert math.isnan(contraction([1.0, 0.1, 0.1, 0.1, math.nan]))


def test_a_probe_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="a probe of 2 steps; it needs at least 3"):
        contraction([1.0, 0.1, 0.01])


def test_the_probe_tells_which_smoother_needs_fewer_iterations():
    stencil = rough_stencil((48, 48), contrast=100.0)
    rules = [ClassicalRule(s) for s in (0.4, 1.6, 1.95)]
    factors = [probe(build_hierarchy(stencil, rule, dtype=torch.float64))[0] for rule in rules]
    counts = [iterations(stencil, build_hierarchy(stencil, rule)) for rule in rules]
    assert factors[1] < factors[0]
    assert factors[1] < factors[2]
    for factor, count in zip(factors, counts, strict=True):
        expected = math.log(1e-8) / math.log(factor)
        assert 0.6 * count < expected < 1.6 * count


def test_good_weights_pass_and_bad_ones_fall_back():
    stencil = rough_stencil((40, 40), batch=3, contrast=1e6)
    hierarchy, decision = guarded_hierarchy(stencil, ClassicalRule(1.7), every=1)
    assert decision.learned
    assert decision.ratio < 0.98
    assert torch.equal(hierarchy.levels[0].smoother, build_hierarchy(stencil, ClassicalRule(1.7)).levels[0].smoother)
    hierarchy, decision = guarded_hierarchy(stencil, ClassicalRule(0.05))
    assert not decision.learned
    assert decision.ratio > 1
    assert torch.equal(hierarchy.levels[0].smoother, build_hierarchy(stencil, CLASSICAL).levels[0].smoother)


def test_weights_gone_wrong_fall_back():
    net = GridNetwork(2)
    with torch.no_grad():
        net.smoother_bias.fill_(-50.0)
    _, decision = guarded_hierarchy(rough_stencil((30, 30)), net)
    assert not decision.learned


def test_equal_cycles_are_kept_unless_they_cost_more():
    stencil = rough_stencil((30, 30))
    assert guarded_hierarchy(stencil, CLASSICAL)[1].learned
    costs = Costs(3.0, 4.0)
    assert not guarded_hierarchy(stencil, CLASSICAL, costs=costs)[1].learned
    assert guarded_hierarchy(stencil, CLASSICAL, costs=costs, solves=math.inf)[1].learned


def test_a_longer_set_up_counts_less_the_more_solves_it_serves():
    costs = Costs(5.0, 25.0)
    # A contraction of 0.1 takes eight iterations to 1e-8.
    assert costs.ratio(0.1) == pytest.approx(33 / 13)
    assert costs.ratio(0.1, solves=10) == pytest.approx(105 / 85)
    assert costs.ratio(0.1, solves=math.inf) == 1
    for useless in (0.0, 1.0, math.nan):
        assert costs.ratio(useless) == 1


def test_a_lead_of_few_iterations_does_not_pay_for_the_set_up_of_one_solve():
    stencil = rough_stencil((40, 40), batch=3, contrast=1e6)
    rule, costs = ClassicalRule(1.7), Costs(4.0, 20.0)
    assert guarded_hierarchy(stencil, rule, costs=costs, solves=math.inf)[1].learned
    decision = guarded_hierarchy(stencil, rule, costs=costs)[1]
    assert not decision.learned
    assert decision.ratio > 1.2


def test_only_finite_systems_are_probed():
    a = rough((20, 20), batch=3)
    a[0, 3, 3] = torch.nan
    hierarchy, decision = guarded_hierarchy(diffusion(a), ClassicalRule(1.5))
    assert math.isfinite(decision.ratio)
    assert hierarchy.batch == 3
    a[:, 3, 3] = torch.nan
    _, decision = guarded_hierarchy(diffusion(a), ClassicalRule(1.5))
    assert not decision.learned
    assert "no finite system" in decision.reason


@pytest.mark.parametrize("walls", ["dirichlet", "neumann"])
@pytest.mark.parametrize("shape", [(7, 8), (40, 30), (1, 1), (6, 7, 8)])
def test_probes_of_all_kinds_of_systems_are_usable(shape, walls):
    hierarchy = build_hierarchy(rough_stencil(shape, walls, batch=2), dtype=torch.float64)
    assert all(0 <= factor < 0.8 for factor in probe(hierarchy))


def test_masked_systems_can_be_probed():
    active = torch.ones(1, 30, 30, dtype=torch.bool)
    active[:, 10:20, 5:9] = False
    stencil = diffusion(rough((30, 30), batch=2), active=active)
    assert 1 < guarded_hierarchy(stencil, ClassicalRule(1.5))[1].ratio < 1.2


def test_cells_that_are_not_active_take_no_part_in_a_probe(monkeypatch):
    active = torch.zeros(1, 12, 12, dtype=torch.bool)
    hierarchy = build_hierarchy(diffusion(rough((12, 12)), active=active), dtype=torch.float64)
    monkeypatch.setattr(grid_probe, "contraction", lambda energies: energies[0])
    assert probe(hierarchy, active) == [0.0]
    assert probe(hierarchy)[0] > 0


@pytest.mark.parametrize(("every", "probed"), [(1, 5), (3, 2), (16, 1)])
def test_one_system_in_so_many_is_probed(every, probed):
    class Counting:
        def __init__(self):
            self.batches = []

        def __call__(self, rows, *, finest):
            self.batches += [rows.diagonal.shape[0]]
            return CLASSICAL(rows, finest=finest)

    rule = Counting()
    guarded_hierarchy(rough_stencil((9, 9), batch=5), rule, every=every)
    assert rule.batches == [probed, 5]


def test_at_least_one_system_is_probed():
    with pytest.raises(ValueError, match="every = 0; at least one system"):
        guarded_hierarchy(rough_stencil((12, 12)), CLASSICAL, every=0)


def test_probation_starts_classical_and_probes_within_its_budget():
    memory = Probation(budget=0.05)
    assert not memory.decision.learned
    probes = 0
    for _ in range(400):
        if memory.due():
            memory.probed(Decision(True, 0.9, "better"))
            probes += 1
        memory.advanced(11)
        assert memory.spent <= 0.05 * memory.solved
    assert memory.decision.learned
    assert probes == int(0.05 * 399 * 11 // (2 * PROBE_STEPS))


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5])
def test_a_budget_that_is_no_share_is_refused(budget):
    with pytest.raises(ValueError, match=r"lies in \(0, 1\], 0\.05 is good"):
        Probation(budget=budget)
