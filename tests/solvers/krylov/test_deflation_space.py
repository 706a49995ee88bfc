"""The space of deflated CG as a value: what solves leave to each other, when it is refreshed, saving."""

import numpy as np
import pytest
from suites.linear_cases import diffusion
from suites.spd_cases import SIDE, Sequence, drifting

from forebay.solvers.krylov.deflated_cg import DeflatedCg
from forebay.solvers.krylov.deflation_space import YOUNG, DeflationSpace
from forebay.solvers.krylov.space import RecycleSpace


def test_solves_do_not_depend_on_anything_but_their_arguments():
    sequence = drifting(4)
    solver, space, kept = DeflatedCg(recycle=8), None, []
    for k in range(4):
        before = space
        x, record, space = sequence.ready(solver, k).solve(sequence.rhs, space)
        kept.append((before, x.copy(), record))
    other = DeflatedCg(recycle=8)
    for k in (3, 0, 2, 1):
        x, record, _ = sequence.ready(other, k).solve(sequence.rhs, kept[k][0])
        assert np.array_equal(x, kept[k][1])
        assert record == kept[k][2]


def test_the_images_are_kept_for_a_second_right_hand_side():
    sequence = drifting(1)
    solver = sequence.ready(DeflatedCg(recycle=8))
    _, _, space = solver.solve(sequence.rhs)
    space = RecycleSpace(space.vectors, YOUNG + 5)
    _, first, space = solver.solve(sequence.rhs, space)
    second = np.random.default_rng(8).standard_normal(len(sequence.rhs))
    x, kept, _ = solver.solve(second, space)
    again, computed, _ = sequence.ready(DeflatedCg(recycle=8)).solve(second, space)
    assert computed.products - kept.products == space.dimension
    assert np.array_equal(x, again)
    assert first.products > first.iterations + space.dimension


@pytest.mark.parametrize("systems", [1, YOUNG + 5])
def test_a_space_is_saved_and_restored(tmp_path, systems):
    sequence = drifting(2)
    solver = sequence.ready(DeflatedCg(recycle=8))
    _, _, space = solver.solve(sequence.rhs)
    space = DeflationSpace(space.vectors, systems, 3.25)
    space.save(tmp_path / "space.npz")
    restored = DeflationSpace.load(tmp_path / "space.npz")
    assert (restored.systems, restored.pace) == (systems, 3.25)
    sequence.ready(solver, 1)
    x, record, after = solver.solve(sequence.rhs, space)
    again, record_again, after_again = solver.solve(sequence.rhs, restored)
    assert np.array_equal(x, again)
    assert record.iterations == record_again.iterations
    assert np.array_equal(after.vectors, after_again.vectors)
    assert (after.systems, after.pace) == (after_again.systems, after_again.pace)


def test_a_plain_space_can_be_loaded_and_other_files_cannot(tmp_path):
    RecycleSpace(np.ones((1, 4)), 3).save(tmp_path / "plain.npz")
    plain = DeflationSpace.load(tmp_path / "plain.npz")
    assert (plain.dimension, plain.systems, plain.pace) == (1, 3, np.inf)
    (tmp_path / "other.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a saved recycle space"):
        DeflationSpace.load(tmp_path / "other.npz")


@pytest.mark.parametrize(("variant", "refreshes"), [("exact", True), ("economical", False), ("frozen", False)])
def test_an_old_space_is_refreshed_by_the_exact_variant_only(variant, refreshes):
    sequence = drifting(1)
    solver = sequence.ready(DeflatedCg(recycle=8, variant=variant))
    _, _, space = solver.solve(sequence.rhs)
    old = DeflationSpace(space.vectors, YOUNG)
    _, record, after = solver.solve(sequence.rhs, old)
    assert (after.vectors is not old.vectors) == refreshes
    assert after.systems == YOUNG + 1
    assert record.applications - record.iterations == (old.dimension if refreshes else 0)
    assert (after.pace == np.inf) == refreshes


@pytest.mark.parametrize(("variant", "refreshes"), [("economical", True), ("frozen", False)])
def test_a_space_that_has_become_stale_is_refreshed(variant, refreshes):
    # A drift: the second matrix has another pattern of resistances and a larger contrast.
    sequence = Sequence([diffusion(1, side=SIDE), diffusion(9, side=SIDE, contrast=300.0)])
    solver, space = DeflatedCg(recycle=8, variant=variant), None
    for _ in range(YOUNG + 2):
        _, _, space = sequence.ready(solver).solve(sequence.rhs, space)
    assert space.pace < np.inf
    _, slow, after = sequence.ready(solver, 1).solve(sequence.rhs, space)
    assert slow.iterations > 1.25 * 8 * space.pace
    assert (after.vectors is not space.vectors) == refreshes
    assert (after.systems < YOUNG) == refreshes
    for _ in range(4):
        _, record, after = sequence.ready(solver, 1).solve(sequence.rhs, after)
    assert (record.iterations < 0.9 * slow.iterations) == refreshes


@pytest.mark.parametrize(("dimension", "grown"), [(2, 8), (5, 5)])
def test_a_small_old_space_still_grows(dimension, grown):
    sequence = drifting(1)
    solver = sequence.ready(DeflatedCg(recycle=8, variant="frozen"))
    _, _, space = solver.solve(sequence.rhs)
    _, _, after = solver.solve(sequence.rhs, RecycleSpace(space.vectors[:dimension].copy(), YOUNG))
    assert after.dimension == grown


@pytest.mark.parametrize("best", [1.0, 50.0])
def test_the_best_pace_since_the_refresh_is_remembered(best):
    sequence = drifting(1)
    solver = sequence.ready(DeflatedCg(recycle=8, variant="frozen"))
    _, _, space = solver.solve(sequence.rhs)
    _, record, after = solver.solve(sequence.rhs, DeflationSpace(space.vectors, YOUNG, best))
    assert after.pace == pytest.approx(min(best, record.iterations / -np.log10(record.residual)))


def test_a_small_recycle_takes_part_of_a_larger_space():
    sequence = drifting(1)
    _, _, space = sequence.ready(DeflatedCg(recycle=8)).solve(sequence.rhs)
    old = RecycleSpace(space.vectors, YOUNG)
    _, record, after = sequence.ready(DeflatedCg(recycle=6)).solve(sequence.rhs, old)
    assert record.products == record.iterations + 6 + 2 + 2  # images; first and last residual; cleaned twice
    assert after.dimension == 8
