"""Batches of systems: the same bits as one at a time, on any number of threads."""

import numpy as np
import pytest
from cpu_systems import grid_system

from forebay.kernels.cpu import GridSolver, solve_batch
from forebay.kernels.records import Outcome


def batch(shape, count, **options):
    systems = [grid_system(shape, seed=seed, **options) for seed in range(7, 7 + count)]
    faces = [np.stack(axis) for axis in zip(*(system.faces for system in systems), strict=True)]
    return systems, faces, np.stack([s.reaction for s in systems]), np.stack([s.rhs for s in systems])


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("shape", [(33, 40), (9, 12, 10)])
def test_a_system_has_the_same_bits_alone_and_in_a_batch_on_any_number_of_threads(shape, threads):
    systems, faces, reaction, rhs = batch(shape, 5)
    fields, results = solve_batch(faces, reaction, rhs, threads=threads)
    for system, field, result in zip(systems, fields, results, strict=True):
        solver, alone = GridSolver(shape), np.empty(shape)
        solver.setup(system.faces, system.reaction)
        assert solver.solve(system.rhs, alone) == result
        assert (alone == field).all()
        assert system.residual(field) <= 1.0001e-8


@pytest.mark.parametrize("threads", [1, 2])
def test_one_system_serves_a_batch_of_right_hand_sides(threads):
    system = grid_system((21, 30))
    rhs = np.random.default_rng(11).standard_normal((4, 21, 30))
    faces = [face[None] for face in system.faces]
    fields, results = solve_batch(faces, system.reaction[None], rhs, threads=threads, rtol=1e-11)
    assert all(result.outcome is Outcome.CONVERGED for result in results)
    assert all(system.residual(field, b) <= 1.0001e-11 for field, b in zip(fields, rhs, strict=True))
    again, warm = solve_batch(faces, system.reaction[None], rhs, guess=fields)
    assert [result.iterations for result in warm] == [0] * 4
    np.testing.assert_allclose(again, fields, rtol=1e-13)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_broken_system_costs_nobody_but_itself(threads):
    _, faces, reaction, rhs = batch((20, 24), 4)
    expected, _ = solve_batch(faces, reaction, rhs)
    faces[1][0, 2, 3] = np.nan
    rhs[2, 5, 5] = np.inf
    fields, results = solve_batch(faces, reaction, rhs, threads=threads)
    assert [result.outcome for result in results] == [Outcome.NONFINITE_INPUT, 0, Outcome.NONFINITE_INPUT, 0]
    assert np.isnan(fields[[0, 2]]).all()
    assert (fields[[1, 3]] == expected[[1, 3]]).all()


def test_one_mask_or_one_for_each_system():
    _, faces, reaction, rhs = batch((20, 24), 3)
    active = np.ones((3, 20, 24), bool)
    active[:, 3:9, 4:11] = False
    one, _ = solve_batch(faces, reaction, rhs, active=active[:1])
    each, results = solve_batch(faces, reaction, rhs, active=active)
    assert (one == each).all()
    assert (each[~active] == 0).all()
    assert all(result.outcome is Outcome.CONVERGED for result in results)


def test_masks_alone_make_systems_differ():
    _, faces, reaction, rhs = batch((20, 24), 1)
    active = np.ones((2, 20, 24), bool)
    active[1, 3:9, 4:11] = False
    fields, _ = solve_batch(faces, reaction, rhs[[0, 0]], active=active)
    for item in (0, 1):
        alone, _ = solve_batch(faces, reaction, rhs, active=active[item : item + 1])
        assert (fields[item] == alone[0]).all()
    assert (fields[1][~active[1]] == 0).all()
    assert (fields[0][~active[1]] != 0).all()


def test_an_empty_batch_is_no_work():
    _, faces, reaction, rhs = batch((20, 24), 1)
    fields, results = solve_batch(faces, reaction, rhs[:0])
    assert fields.shape == (0, 20, 24)
    assert results == ()


@pytest.mark.parametrize("name", ["faces", "reaction", "active"])
def test_batches_that_do_not_fit_together_are_refused(name):
    _, faces, reaction, rhs = batch((20, 24), 3)
    arrays = {"faces": faces, "reaction": reaction, "active": np.ones((3, 20, 24), bool)}
    arrays[name] = [faces[0], faces[1][:2]] if name == "faces" else arrays[name][:2]
    with pytest.raises(ValueError, match=f"{name} are of 2 systems for 3 right-hand sides; give one or as many"):
        solve_batch(rhs=rhs, **arrays)


def test_no_threads_are_refused():
    _, faces, reaction, rhs = batch((20, 24), 1)
    with pytest.raises(ValueError, match="threads = 0 must be at least 1"):
        solve_batch(faces, reaction, rhs, threads=0)
