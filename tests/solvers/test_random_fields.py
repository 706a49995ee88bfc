from __future__ import annotations

import numpy as np
import pytest

from forebay.pipeline.sampling import sample_generator
from forebay.solvers.random_fields import NeumannField, PeriodicTrace


class OneCoefficient:
    """Stands in for a generator: noise that is 1 at one place and 0 elsewhere, so that a draw shows one mode."""

    def __init__(self, *place):
        self.place = place

    def standard_normal(self, shape):
        noise = np.zeros(shape)
        noise[self.place] = 1.0
        return noise


@pytest.mark.parametrize(("k", "l"), [(0, 1), (3, 0), (2, 5), (11, 11)])
def test_each_coefficient_carries_its_cosine_mode(k, l):  # noqa: E741 - the symbols of the docstring
    n, alpha, tau, sigma = 12, 2.0, 3.0, 1.7
    at = (np.arange(n) + 0.5) / n
    phi = [np.ones(n)] + [np.sqrt(2) * np.cos(np.pi * m * at) for m in range(1, n)]
    eigenvalue = (np.pi**2 * (np.arange(n)[:, None] ** 2 + np.arange(n) ** 2) + tau**2) ** -alpha
    eigenvalue[0, 0] = 0
    expected = sigma * np.sqrt(eigenvalue[k, l] / eigenvalue.sum()) * np.outer(phi[k], phi[l])
    np.testing.assert_allclose(NeumannField(n, alpha, tau, sigma).draw(OneCoefficient(k, l)), expected, atol=1e-14)


@pytest.mark.parametrize("mode", [(0, 0, 1), (2, 0, 3), (1, 4, 2), (6, 6, 6)])
def test_each_coefficient_carries_its_cosine_mode_in_three_dimensions(mode):
    n, alpha, tau, sigma = 7, 2.5, 3.0, 1.7
    at = (np.arange(n) + 0.5) / n
    phi = [np.ones(n)] + [np.sqrt(2) * np.cos(np.pi * m * at) for m in range(1, n)]
    i, j, k = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    eigenvalue = (np.pi**2 * (i**2 + j**2 + k**2) + tau**2) ** -alpha
    eigenvalue[0, 0, 0] = 0
    shape = np.einsum("i,j,k->ijk", *[phi[m] for m in mode])
    expected = sigma * np.sqrt(eigenvalue[mode] / eigenvalue.sum()) * shape
    np.testing.assert_allclose(
        NeumannField(n, alpha, tau, sigma, dim=3).draw(OneCoefficient(*mode)), expected, atol=1e-14
    )


@pytest.mark.parametrize(("n", "dim"), [(32, 2), (10, 3)])
def test_the_field_has_no_mean(n, dim):
    assert abs(NeumannField(n, 2.0, 3.0, dim=dim).draw(sample_generator(2713, "field", 0)).mean()) < 1e-14
    assert not NeumannField(n, 2.0, 0.0, dim=dim).draw(OneCoefficient(*[0] * dim)).any()


@pytest.mark.parametrize(("n", "dim"), [(32, 2), (10, 3)])
def test_the_variance_averaged_over_the_domain_is_sigma_squared(n, dim):
    field = NeumannField(n, 2.0, 3.0, sigma=2.5, dim=dim)
    np.testing.assert_allclose((field.deviations**2).sum(), 2.5**2, rtol=1e-12)
    drawn = np.array([field.draw(sample_generator(2713, "field", i)) for i in range(400)])
    assert abs(drawn.std() / 2.5 - 1) < 0.06  # four standard errors: the first modes carry most of the variance


def test_neighbours_are_more_alike_when_the_field_is_smoother():
    def roughness(alpha):
        drawn = np.array([NeumannField(32, alpha, 7.0).draw(sample_generator(2713, "field", i)) for i in range(20)])
        return (np.diff(drawn, axis=1) ** 2).mean()

    assert roughness(1.5) > 2 * roughness(2.5) > 4 * roughness(4.0)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_same_generator_gives_the_same_field(dim):
    field = NeumannField(16, 2.0, 3.0, dim=dim)
    first, again, other = (field.draw(sample_generator(2713, "field", i)) for i in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize("mode", [1, 5])
def test_the_trace_is_its_fourier_series(mode):
    n, modes, sigma = 40, 5, 1.3
    s = np.arange(n) / n
    scale = sigma * mode**-2 / np.sqrt((np.arange(1, modes + 1) ** -4.0).sum())
    trace = PeriodicTrace(n, modes, sigma)
    np.testing.assert_allclose(
        trace.draw(OneCoefficient(0, mode - 1)), scale * np.cos(2 * np.pi * mode * s), atol=1e-14
    )
    np.testing.assert_allclose(
        trace.draw(OneCoefficient(1, mode - 1)), scale * np.sin(2 * np.pi * mode * s), atol=1e-14
    )


def test_the_trace_has_the_deviation_sigma_everywhere():
    trace = PeriodicTrace(124, 8, sigma=0.7)
    drawn = np.array([trace.draw(sample_generator(2713, "trace", i)) for i in range(3000)])
    np.testing.assert_allclose(drawn.std(axis=0), 0.7, rtol=0.06)
    assert np.abs(drawn[:, 0] - drawn[:, -1]).max() < 1.0  # it closes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NeumannField(8, 1.0, 3.0),
            r"alpha = 1.0 makes no field of finite variance in 2 dimensions; it must exceed 1",
        ),
        (
            lambda: NeumannField(8, 1.5, 3.0, dim=3),
            r"alpha = 1.5 makes no field of finite variance in 3 dimensions; it must exceed 1.5",
        ),
        (lambda: NeumannField(8, 2.0, -3.0), r"tau = -3.0 and sigma = 1.0 must not be negative; try tau = 3"),
        (lambda: PeriodicTrace(16, 8), "8 modes on 16 points; choose from 1 to 7"),
        (lambda: PeriodicTrace(16, 0), "0 modes on 16 points; choose from 1 to 7"),
    ],
)
def test_impossible_spectra_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
