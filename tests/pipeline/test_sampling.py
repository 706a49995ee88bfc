from __future__ import annotations

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import qmc

from forebay.pipeline.records import Parameter, Schema
from forebay.pipeline.sampling import Design, draw_parameters, sample_generator, sample_seed

KINDS = ("random", "sobol", "latin_hypercube")


def points(design):
    return np.array([design.point(i) for i in range(design.samples)])


def test_the_seed_of_a_sample_never_changes_between_versions():
    assert sample_seed(2713, "train", 5) == 0x1C55DC344C06C11D
    assert sample_seed(2713, "validation", 5) == 0x5CD67435270A2977


def test_seeds_are_64_bit_words_that_differ_in_run_stream_and_sample():
    keys = list(itertools.product((2713, 2714), ("train", "validation", "trai"), range(200)))
    seeds = [sample_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**63  # the upper half is used


def test_a_generator_is_the_philox_keyed_by_the_seed():
    expected = np.random.Generator(np.random.Philox(key=sample_seed(2713, "train", 8))).standard_normal(5)
    np.testing.assert_array_equal(sample_generator(2713, "train", 8).standard_normal(5), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_does_not_depend_on_the_order_of_asking(kind):
    design = Design(kind, 2713, "train", 37, 3)
    forwards = points(design)
    backwards = np.array([design.point(i) for i in reversed(range(37))])[::-1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(design)).point(20), forwards[20])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_another_process_draws_the_same_point(kind):
    code = (
        "from forebay.pipeline.sampling import Design;"
        f"print(Design({kind!r}, 2713, 'train', 37, 3).point(20).tobytes().hex())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    np.testing.assert_array_equal(np.frombuffer(bytes.fromhex(output)), Design(kind, 2713, "train", 37, 3).point(20))


@pytest.mark.parametrize("kind", KINDS)
def test_streams_and_runs_have_designs_of_their_own(kind):
    designs = [Design(kind, seed, stream, 16, 2) for seed in (2713, 2714) for stream in ("train", "validation")]
    for one, other in itertools.combinations(map(points, designs), 2):
        assert not np.isin(one, other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_points_lie_in_the_unit_cube_for_any_number_of_samples(kind):
    for samples in (1, 2, 3, 31, 33, 100):
        found = points(Design(kind, 2713, "train", samples, 4))
        assert found.shape == (samples, 4)
        assert found.dtype == np.float64
        assert ((found >= 0) & (found < 1)).all()


def test_a_latin_hypercube_has_one_point_in_every_stratum_of_every_axis():
    found = points(Design("latin_hypercube", 2713, "train", 53, 4))
    for axis in found.T:
        np.testing.assert_array_equal(np.sort(np.floor(axis * 53)), np.arange(53))


def test_a_sobol_design_has_one_point_in_every_elementary_box():
    found = points(Design("sobol", 2713, "train", 64, 2))
    boxes = np.floor(found * 8).astype(int)
    np.testing.assert_array_equal(np.bincount(boxes[:, 0] * 8 + boxes[:, 1], minlength=64), np.ones(64))


def test_a_longer_sobol_design_extends_the_shorter_one():
    np.testing.assert_array_equal(
        points(Design("sobol", 2713, "train", 130, 3))[:50], points(Design("sobol", 2713, "train", 50, 3))
    )


def test_sobol_fills_the_cube_more_evenly_than_independent_points():
    discrepancy = {kind: qmc.discrepancy(points(Design(kind, 2713, "train", 200, 3))) for kind in KINDS}
    assert discrepancy["sobol"] < 0.2 * discrepancy["random"]
    assert discrepancy["latin_hypercube"] < discrepancy["random"]


def test_random_points_are_uniform():
    found = points(Design("random", 2713, "train", 2000, 2))
    counts = np.histogram(found, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, 99.9 %


def test_a_design_without_parameters_has_empty_points():
    assert Design("sobol", 2713, "train", 9, 0).point(8).shape == (0,)


def test_the_points_of_a_whole_design_cannot_be_overwritten():
    with pytest.raises(ValueError, match="read-only"):
        Design("sobol", 2713, "train", 9, 2).point(3)[0] = 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample_id", [-1, 7])
def test_a_sample_outside_the_design_is_refused(kind, sample_id):
    with pytest.raises(IndexError, match=rf"sample {sample_id} of a design of 7; ids are 0 \.\.\. 6"):
        Design(kind, 2713, "train", 7, 2).point(sample_id)


def test_an_unknown_or_empty_design_is_refused():
    with pytest.raises(ValueError, match="design 'halton' is unknown; choose one of random, sobol, latin_hypercube"):
        Design("halton", 2713, "train", 7, 2)
    with pytest.raises(ValueError, match="a design of 0 samples in 2 dimensions is empty; it needs at least 1 sample"):
        Design("random", 2713, "train", 0, 2)


def test_parameters_follow_their_distributions():
    schema = Schema(
        parameters=(
            Parameter("T", 100, 500, "K"),
            Parameter("Pe", 1, 100, distribution="log_uniform"),
            Parameter("xi", -1, 1, distribution="normal"),
        ),
        inputs=(),
        outputs=(),
    )
    design = Design("sobol", 2713, "train", 512, 3)
    drawn = np.array([draw_parameters(schema, design, i) for i in range(512)])
    assert drawn.dtype == np.float64
    np.testing.assert_allclose(drawn[7, 0], 100 + 400 * design.point(7)[0], rtol=1e-14)
    np.testing.assert_allclose(np.median(drawn, axis=0), [300, 10, 0], atol=0.05, rtol=0.01)
    assert abs(drawn[:, 2].std() - 1) < 0.02
    assert abs(np.log10(drawn[:, 1]).std() - 2 / np.sqrt(12)) < 0.01


def test_parameters_without_a_schema_entry_for_every_dimension_are_refused():
    schema = Schema(parameters=(Parameter("T", 100, 500),), inputs=(), outputs=())
    with pytest.raises(ValueError, match="argument 2 is longer"):
        draw_parameters(schema, Design("random", 2713, "train", 4, 2), 3)
