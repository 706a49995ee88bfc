import numpy as np
import pytest

from forebay.solvers.materials.chaboche import LinearElastic
from forebay.solvers.materials.history import History

TIMES = np.array([0.0, 1.0, 4.0])
LOADS = np.array([[0.0, 1.0], [2.0, 1.0], [8.0, -3.0]])
LIFTS = np.array([[0.0], [0.5], [0.0]])


def room(positions, time):
    return np.full(len(positions), 20.0 + time)


def history(times=TIMES, loads=LOADS, displacements=LIFTS):
    return History(times, loads, displacements, room, LinearElastic())


def test_everything_is_linear_within_a_step():
    path = history()
    assert path.steps == 2
    np.testing.assert_allclose(path.loads_at(2, 0.25), [3.5, 0.0])
    np.testing.assert_allclose(path.displacements_at(1, 0.5), [0.25])
    assert path.time_at(2, 0.5) == 2.5
    for step in (1, 2):
        np.testing.assert_array_equal(path.loads_at(step, 0.0), LOADS[step - 1])
        np.testing.assert_array_equal(path.loads_at(step, 1.0), LOADS[step])


@pytest.mark.parametrize("step", [0, 3, -1])
def test_a_step_that_does_not_exist_is_refused(step):
    with pytest.raises(ValueError, match=f"step {step} of a history with steps 1 to 2"):
        history().loads_at(step, 0.5)


@pytest.mark.parametrize("times", [[0.0], [0.0, 1.0, 1.0], [0.0, np.nan, 2.0], [[0.0, 1.0, 2.0]]])
def test_times_that_do_not_increase_are_refused(times):
    with pytest.raises(ValueError, match="must be two or more increasing numbers"):
        history(times=np.array(times))


def test_an_endless_history_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        history(times=np.array([0.0, 1.0, np.inf]))


def test_amplitudes_of_another_number_of_times_or_without_a_value_are_refused():
    with pytest.raises(ValueError, match=r"loads of shape \(2, 2\) for 3 times: give one row per time"):
        history(loads=LOADS[:2])
    with pytest.raises(ValueError, match=r"displacements of shape \(3,\) for 3 times"):
        history(displacements=LIFTS[:, 0])
    with pytest.raises(ValueError, match="displacements hold NaN or inf"):
        history(displacements=LIFTS * np.nan)
