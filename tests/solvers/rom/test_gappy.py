"""Q-DEIM points on any number of ranks, and least squares at few points."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from suites.thread_ranks import alone, on_ranks

from forebay.solvers.rom.gappy import Gappy, qdeim


def smooth_modes(rows=200, count=8):
    x = np.linspace(-1.0, 1.0, rows)
    return np.linalg.qr(np.polynomial.chebyshev.chebvander(x, count - 1) * (1.3 + np.sin(5 * x))[:, None])[0]


def test_points_are_the_pivots_of_qr():
    modes = np.random.default_rng(7).standard_normal((120, 9))
    pivots = scipy.linalg.qr(modes.T, pivoting=True, mode="r")[1][:9]
    assert qdeim(modes, alone()).tolist() == pivots.tolist()


@settings(max_examples=25, deadline=None)
@given(bounds=st.lists(st.integers(0, 40), min_size=1, max_size=4).map(sorted), seed=st.integers(2, 2026))
def test_any_split_of_the_rows_gives_the_same_points(bounds, seed):
    modes = np.random.default_rng(seed).standard_normal((40, 6))
    parts = np.split(modes, bounds)
    picked = on_ranks(len(parts), lambda comm: qdeim(parts[comm.rank], comm))
    together = np.concatenate([own + first for own, first in zip(picked, [0, *bounds], strict=True)])
    assert sorted(together) == sorted(qdeim(modes, alone()))


def test_points_of_smooth_modes_are_well_conditioned_where_equidistant_ones_are_not():
    modes = smooth_modes(count=14)
    equidistant = np.linspace(0, 199, 14).astype(int)
    chosen, plain = Gappy(modes[qdeim(modes, alone())]), Gappy(modes[equidistant])
    assert chosen.condition < 30
    assert plain.condition > 3 * chosen.condition


def test_a_field_in_the_span_comes_back_and_its_residual_is_rounding():
    modes = smooth_modes()
    points = np.union1d(qdeim(modes, alone()), [3, 77, 150])
    truth = np.random.default_rng(11).standard_normal((8, 5))
    coefficients, residual = Gappy(modes[points]).fit(modes[points] @ truth)
    assert np.allclose(coefficients, truth, atol=1e-12)
    assert residual.shape == (5,)
    assert residual.max() < 1e-13


def test_fit_is_least_squares_column_by_column():
    rng = np.random.default_rng(13)
    modes, values = rng.standard_normal((30, 4)), rng.standard_normal((30, 3))
    expected, squares, *_ = np.linalg.lstsq(modes, values)
    gappy = Gappy(modes)
    coefficients, residual = gappy.fit(values)
    assert np.allclose(coefficients, expected, atol=1e-13)
    assert np.allclose(residual, np.sqrt(squares) / np.linalg.norm(values, axis=0), rtol=1e-12)
    single, size = gappy.fit(values[:, 1])
    assert np.allclose(single, expected[:, 1], atol=1e-13)
    assert size == pytest.approx(residual[1])
    assert gappy.condition == pytest.approx(np.linalg.cond(modes))
    assert gappy.amplification == pytest.approx(np.linalg.norm(np.linalg.pinv(modes), 2))


def test_zero_values_have_zero_coefficients_and_residual():
    coefficients, residual = Gappy(smooth_modes()).fit(np.zeros((200, 2)))
    assert not coefficients.any()
    assert not residual.any()


def test_too_few_points_and_dependent_modes_are_refused():
    modes = smooth_modes()
    with pytest.raises(
        ValueError, match=r"shape \(7, 8\); it must be \(m, q\) with m ≥ q > 0: add the points of qdeim"
    ):
        Gappy(modes[:7])
    with pytest.raises(ValueError, match="the 8 modes are linearly dependent at these 9 points"):
        Gappy(np.vstack([modes[:6], modes[:3]]))
    with pytest.raises(ValueError, match="modes hold NaN or inf"):
        Gappy(np.full((3, 2), np.nan))


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (np.ones((3, 5)), "5 modes on 3 rows of all ranks; keep 3 modes"),
        (np.ones((12, 3)), "only 1 of 3 modes are linearly independent; keep 1"),
        (np.zeros((12, 3)), "only 0 of 3 modes"),
        (np.full((12, 3), np.inf), "modes hold NaN or inf"),
    ],
)
def test_modes_without_points_are_refused_on_every_rank(modes, message):
    parts = np.array_split(modes, 2)
    with pytest.raises(ValueError, match=message):
        on_ranks(2, lambda comm: qdeim(parts[comm.rank], comm))
