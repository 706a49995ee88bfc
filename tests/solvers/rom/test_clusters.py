import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from suites.local_simulations import SPAN, STEPS, planted, structureless, weights_of
from suites.thread_ranks import on_ranks

from forebay.solvers.rom.clusters import Decision, LocalBases, LocalSettings, decide
from forebay.solvers.rom.local_gain import Gain

SELF = MPI.COMM_SELF
PLANTED = LocalSettings(modes=SPAN)


def projection_error(basis, snapshots):
    """Relative, in the weighted norm."""
    roots = np.sqrt(weights_of())[:, None]
    modes, rows = roots * basis.modes, roots * snapshots
    return np.linalg.norm(rows - modes @ (modes.T @ rows)) / np.linalg.norm(rows)


@pytest.fixture(scope="module")
def found():
    simulations, parameters, _ = planted(7)
    return decide(simulations, weights_of(), parameters, SELF, PLANTED)


@pytest.fixture(scope="module")
def kept():
    simulations, parameters = structureless(7)
    return decide(simulations, weights_of(), parameters, SELF, LocalSettings(modes=6))


@pytest.mark.parametrize("seed", [7, 11])
@pytest.mark.parametrize("kind", ["sine", "subspace"])
def test_planted_clusters_are_found_exactly(seed, kind):
    simulations, parameters, groups = planted(seed)
    found = decide(simulations, weights_of(), parameters, SELF, replace(PLANTED, dissimilarity=kind))
    assert isinstance(found, LocalBases)
    labels = np.array(found.decision.labels)
    assert len({*zip(labels.tolist(), groups.tolist(), strict=True)}) == 3
    assert sorted(found.decision.gain.sizes) == [7, 9, 11]
    assert [labels[medoid] for medoid in found.decision.medoids] == [0, 1, 2]


def test_distances_do_not_find_clusters_of_unlike_sizes(found):
    by_kind = {gain.dissimilarity: gain for gain in found.decision.gains}
    assert list(by_kind) == ["sine", "l2"]
    assert by_kind["sine"].gain > 10 * by_kind["l2"].gain


def test_local_structure_gains_much_more_than_the_threshold(found):
    decision = found.decision
    assert decision.local
    assert decision.gain.gain > 50
    assert decision.gain.accuracy == 1.0
    assert decision.gain.local_error == decision.gain.assigned_error < 5e-3
    assert decision.gain.global_error > 0.3
    expected = f"local bases gain {decision.gain.gain:.2f} at n = 3, at least 1.2: 3 local bases are used"
    assert decision.reason == expected


def test_each_cluster_has_a_basis_that_spans_its_simulations(found):
    simulations, _, _ = planted(7)
    assert {basis.modes.shape for basis in (*found.bases, found.basis)} == {(len(weights_of()), SPAN)}
    for cluster, basis in enumerate(found.bases):
        np.testing.assert_allclose(basis.modes.T @ (weights_of()[:, None] * basis.modes), np.eye(SPAN), atol=1e-12)
        for label, snapshots in zip(found.decision.labels, simulations, strict=True):
            assert (projection_error(basis, snapshots) < 0.01) == (label == cluster)
    assert max(projection_error(found.basis, snapshots) for snapshots in simulations) > 0.5


def test_new_samples_are_put_into_their_cluster(found):
    simulations, parameters, _ = planted(7)
    rng = np.random.default_rng(13)
    for i in range(0, len(simulations), 3):
        choice = found.choose(parameters[i] + [rng.uniform(-0.05, 0.05), 1e3])
        assert choice.cluster == found.decision.labels[i]
        assert 0.5 < choice.confidence <= 1.0


@pytest.mark.parametrize("folds", [5, 8, 100])
def test_the_errors_are_those_of_bases_without_the_simulations_held_out(folds):
    simulations, parameters, groups = planted(11, groups=(7, 6, 8), noise=0.05)
    found = decide(simulations, weights_of(), parameters, SELF, replace(PLANTED, clusters=3, folds=folds))
    roots = np.sqrt(weights_of())[:, None]
    held_out = []
    for i, snapshots in enumerate(simulations):
        others = [j for j in range(21) if (j - i) % folds]
        row = []
        for members in (others, [j for j in others if groups[j] == groups[i]]):
            rows = np.hstack([simulations[j] for j in members])
            modes = np.linalg.svd(roots * rows, full_matrices=False)[0][:, :SPAN]
            rest = roots * snapshots - modes @ (modes.T @ (roots * snapshots))
            row.append(np.linalg.norm(rest) / np.linalg.norm(roots * snapshots))
        held_out.append(row)
    expected = np.mean(held_out, axis=0)
    gain = found.decision.gain
    assert (gain.global_error, gain.assigned_error) == pytest.approx(tuple(expected), rel=1e-4)
    assert gain.assigned_gain == pytest.approx(expected[0] / expected[1], rel=1e-4)


def test_without_structure_the_global_basis_is_kept_and_the_reason_says_so(kept):
    assert isinstance(kept, Decision)
    assert not kept.local
    assert kept.gain.clusters > 1
    assert kept.gain.gain < 1.2
    assert kept.reason == f"local bases gain {kept.gain.gain:.2f} at n = 6, below 1.2: the global basis is kept"


def test_the_threshold_decides():
    simulations, parameters = structureless(7)
    gain = decide(simulations, weights_of(), parameters, SELF, LocalSettings(modes=2, clusters=2)).gain.gain
    assert gain < 1
    simulations, parameters, _ = planted(7, noise=0.3)
    settings = replace(PLANTED, clusters=3)
    gain = decide(simulations, weights_of(), parameters, SELF, settings).decision.gain.gain
    below = decide(simulations, weights_of(), parameters, SELF, replace(settings, threshold=0.999 * gain))
    above = decide(simulations, weights_of(), parameters, SELF, replace(settings, threshold=1.001 * gain))
    assert (below.decision.local, above.local) == (True, False)


def test_clusters_that_the_parameters_do_not_tell_apart_are_no_gain():
    simulations, parameters, _ = planted(7)
    decision = decide(simulations, weights_of(), np.full_like(parameters, 3.0), SELF, PLANTED)
    assert not decision.local
    assert decision.gain.gain < 1.2 < 50 < decision.gain.assigned_gain
    assert decision.gain.accuracy < 0.7
    assert decision.reason.endswith(
        f"they would gain {decision.gain.assigned_gain:.2f} if the parameters always told the cluster, which they do "
        f"for {decision.gain.accuracy:.0%} of the simulations"
    )


def test_the_first_steps_tell_clusters_apart_where_the_parameters_do_not():
    simulations, parameters, _ = planted(7)
    simulations = [u / np.linalg.norm(u) * np.sign(u[0, 0]) for u in simulations]
    noise = np.random.default_rng(11).uniform(size=parameters.shape)
    found = decide(simulations, weights_of(), noise, SELF, replace(PLANTED, first_steps=2))
    assert isinstance(found, LocalBases)
    assert found.decision.gain.accuracy > 0.8
    starts = [found.basis.project(snapshots[:, :2], SELF).T for snapshots in simulations]
    chosen = [found.choose(values, start).cluster for values, start in zip(noise, starts, strict=True)]
    assert np.mean(np.array(chosen) == found.decision.labels) > 0.9
    with pytest.raises(ValueError, match="0 first steps of the sample; the classifier was trained with 2"):
        found.choose(noise[0])
    with pytest.raises(ValueError, match="trained with 8 finite numbers"):
        found.choose(noise[0], starts[0][:, :2])


def test_small_clusters_are_merged():
    simulations, parameters, groups = planted(7, groups=(9, 3, 11))
    found = decide(simulations, weights_of(), parameters, SELF, replace(PLANTED, clusters=3, smallest=4))
    assert found.decision.gain.clusters == 2
    assert min(found.decision.gain.sizes) >= 9
    large = [label for label, group in zip(found.decision.labels, groups, strict=True) if group != 1]
    assert len({*zip(large, groups[groups != 1].tolist(), strict=True)}) == 2


def test_clusters_with_fewer_snapshots_than_modes_are_merged():
    simulations, parameters, _ = planted(7, groups=(5, 5, 9), noise=0.0)
    wide = decide(simulations, weights_of(), parameters, SELF, LocalSettings(modes=4, clusters=3))
    assert not wide.local
    assert wide.gain.clusters == 1
    assert wide.gain.gain == 1.0
    expected = "no two clusters of at least 4 simulations and 4 independent snapshots: the global basis is kept"
    assert wide.reason == expected


def test_errors_below_the_precision_do_not_make_a_gain():
    gain = Gain("sine", "final", (4, 5), 0.5, "logistic", 1.0, 3, 1e-13, 1e-16, 1e-15)
    assert (gain.gain, gain.assigned_gain) == (1.0, 1.0)
    assert replace(gain, global_error=2e-5).gain == pytest.approx(20.0)


def test_final_solutions_are_compared_if_asked_for():
    simulations, parameters, _ = planted(7)
    unequal = [u[:, : STEPS - i % 3] for i, u in enumerate(simulations)]
    final = decide(unequal, weights_of(), parameters, SELF, replace(PLANTED, solution="final"))
    assert final.decision.gain.solution == "final"
    with pytest.raises(ValueError, match="cannot be compared"):
        decide(unequal, weights_of(), parameters, SELF, PLANTED)


def test_weights_belong_to_the_norm():
    simulations, parameters, _ = planted(7)
    heavy = weights_of()
    heavy[:30] *= 1e-8
    seen = [
        decide(u, w, parameters, SELF, replace(PLANTED, clusters=3)).decision.gain.global_error
        for u, w in (
            (simulations, heavy),
            ([u[30:] for u in simulations], heavy[30:]),
            (simulations, weights_of()),
        )
    ]
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)
    assert seen[2] != pytest.approx(seen[1], rel=1e-2)


def test_a_decision_is_plain_json_and_comes_back(found, kept):
    for decision in (found.decision, kept):
        content = decision.to_dict()
        text = json.dumps(content, allow_nan=False)
        assert json.loads(text) == content
        again = Decision.from_dict(json.loads(text))
        assert again.to_dict() == content
        assert again.gains == decision.gains
    _, parameters, _ = planted(7)
    again = Decision.from_dict(found.decision.to_dict())
    assert [again.choose(values) for values in parameters] == [found.choose(values) for values in parameters]
    assert found.decision.to_dict()["gains"][0]["gain"] == found.decision.gain.gain


def test_decisions_of_another_format_are_refused(kept):
    with pytest.raises(ValueError, match="a decision of format 7; this version reads 1: decide again"):
        Decision.from_dict(kept.to_dict() | {"format": 7})


def test_the_same_simulations_give_the_same_decision(found):
    simulations, parameters, _ = planted(7)
    again = decide(simulations, weights_of(), parameters, SELF, PLANTED)
    assert again.decision.to_dict() == found.decision.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": 0}, "modes = 0; at least 1"),
        ({"smallest": 1}, "smallest = 1; at least 2"),
        ({"folds": 1}, "folds = 1; at least 2"),
        ({"dimension": 0}, "dimension = 0; at least 1"),
        ({"first_steps": -1}, "first_steps = -1; at least 0"),
        ({"threshold": 0.9}, "threshold = 0.9 must be at least 1"),
        ({"threshold": float("nan")}, "threshold = nan must be at least 1"),
        ({"dissimilarity": "cosine"}, "dissimilarity 'cosine' of solution 'trajectory'; choose sine"),
        ({"solution": "mean"}, "of solution 'mean'; choose .* trajectory or final"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(PLANTED, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 28}, "clusters = 28 of 27 simulations; ask for 1 to 27"),
        ({"modes": 61}, "modes = 61, but the simulations have 60 independent snapshots"),
        ({"first_steps": 7}, "first_steps = 7, but a simulation has 6 snapshots"),
    ],
)
def test_more_than_the_simulations_hold_is_refused(changes, message):
    simulations, parameters, _ = planted(7)
    with pytest.raises(ValueError, match=message):
        decide(simulations, weights_of(), parameters, SELF, replace(PLANTED, **changes))


def test_broken_simulations_and_parameters_are_refused():
    simulations, parameters, _ = planted(7)
    zero = [0.0 * u if i == 9 else u for i, u in enumerate(simulations)]
    with pytest.raises(ValueError, match="simulation 9 is zero at all times"):
        decide(zero, weights_of(), parameters, SELF, PLANTED)
    nan = [np.nan * u if i == 4 else u for i, u in enumerate(simulations)]
    with pytest.raises(ValueError, match="simulation 4 holds NaN or inf"):
        decide(nan, weights_of(), parameters, SELF, PLANTED)
    with pytest.raises(ValueError, match=r"parameters of shape \(26, 2\) for 27 simulations; give \(27, p\)"):
        decide(simulations, weights_of(), parameters[1:], SELF, PLANTED)
    with pytest.raises(ValueError, match="one simulation has no clusters"):
        decide(simulations[:1], weights_of(), parameters[:1], SELF, PLANTED)
    parameters[3, 1] = np.inf
    with pytest.raises(ValueError, match="parameters of simulation 3 hold NaN or inf"):
        decide(simulations, weights_of(), parameters, SELF, PLANTED)


def test_any_number_of_ranks_decides_alike(found):
    simulations, parameters, _ = planted(7)
    rows = np.split(np.arange(len(weights_of())), [3, 4])

    def work(comm):
        mine = rows[comm.rank]
        return decide([u[mine] for u in simulations], weights_of()[mine], parameters, comm, PLANTED)

    parts = on_ranks(3, work)
    assert [part.decision.to_dict() for part in parts[1:]] == [parts[0].decision.to_dict()] * 2
    assert parts[0].decision.labels == found.decision.labels
    assert parts[0].decision.gain.gain == pytest.approx(found.decision.gain.gain, rel=1e-4)
    for cluster, basis in enumerate(found.bases):
        modes = np.concatenate([part.bases[cluster].modes for part in parts])
        np.testing.assert_allclose(modes, basis.modes, atol=1e-9)


def test_ranks_with_other_numbers_of_snapshots_are_refused():
    simulations, parameters, _ = planted(7)
    with pytest.raises(ValueError, match=r"the ranks hold simulations of .* each must hold its rows of all of them"):
        on_ranks(
            2,
            lambda comm: decide(
                [u[:, : STEPS - comm.rank] for u in simulations], weights_of(), parameters, comm, PLANTED
            ),
        )


@pytest.mark.mpi
def test_two_processes_decide_as_one(tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    script = Path(__file__).with_name("clusters_parallel.py")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    found = {}
    for ranks in (1, 2):
        target = tmp_path / f"{ranks}.npz"
        subprocess.run(
            [mpiexec, "-n", str(ranks), sys.executable, script, target],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            timeout=120,
        )
        found[ranks] = dict(np.load(target))
    for name in ("labels", "medoids"):
        assert found[1][name].tolist() == found[2][name].tolist()
    np.testing.assert_allclose(found[1]["errors"], found[2]["errors"], rtol=1e-5)
    np.testing.assert_allclose(found[1]["modes"], found[2]["modes"], atol=1e-7)
    assert found[1]["refused"].tolist() == ["simulation 5 holds NaN or inf; leave it out"]
    assert set(found[2]["refused"]) == {"simulation 5 holds NaN or inf; leave it out (on rank 1)"}


def test_choosing_a_cluster_needs_numpy_and_scipy_only():
    script = (
        "import sys, forebay.solvers.rom.clusters\n"
        "print(sorted({'sklearn', 'mpi4py', 'petsc4py', 'dolfinx', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
