import numpy as np
import pytest

from forebay.pipeline.errors import StudyError
from forebay.solvers.problems.programme import Programme, warming


def test_cycles_are_cut_into_equal_steps():
    programme = Programme(steps=8, cycles=3, duration=2.0, frames=5)
    np.testing.assert_allclose(programme.times, np.linspace(0, 6, 25), rtol=1e-15)
    assert (programme.times[[0, 8, 16, 24]] == [0.0, 2.0, 4.0, 6.0]).all(), "ends of cycles are hit exactly"


@pytest.mark.parametrize(
    ("steps", "cycles", "frames", "kept"),
    [
        (40, 1, 10, [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]),
        (8, 1, 3, [3, 6, 8]),
        (4, 2, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (7, 3, 1, [21]),
        (5, 1, 4, [2, 3, 4, 5]),
    ],
)
def test_frames_are_spread_over_the_steps_and_end_with_the_last(steps, cycles, frames, kept):
    programme = Programme(steps, cycles, 2.0, frames)
    assert programme.stored_steps.tolist() == kept
    assert programme.stored_steps.dtype == np.int64
    assert programme.stored_times == tuple(programme.times[kept])
    assert all(type(time) is float for time in programme.stored_times)


def test_no_two_frames_are_the_same():
    for total in range(4, 40):
        for frames in range(1, total + 1):
            kept = Programme(total, 1, 1.0, frames).stored_steps
            assert kept[0] >= 1
            assert kept[-1] == total
            assert (np.diff(kept) > 0).all()


def test_more_frames_than_steps_are_refused():
    with pytest.raises(StudyError, match=r"problem.frames = 9 is more than the 8 steps .* to 8 at most, or raise"):
        Programme(4, 2, 1.0, 9)


def test_a_hot_spot_is_cold_at_the_ends_of_cycles_and_hottest_between():
    assert [warming(s) for s in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([0.0, 1.0, 0.0, 1.0], abs=1e-14)
    assert warming(1 / 3) == pytest.approx(0.75)
