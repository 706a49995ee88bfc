"""The order of solving: a permutation within windows that shortens the path, and the features it looks at."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.fft import dctn

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema
from forebay.pipeline.sampling import sample_generator
from forebay.solvers.krylov import sorting
from forebay.solvers.krylov.sorting import FeatureMap, PathGain, nearest_order, path_gain
from forebay.solvers.problems.darcy import Darcy

ANY_FEATURES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.floats(width=64))
FINITE_FEATURES = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.floats(allow_nan=False, allow_infinity=False),
)
WINDOWS = st.one_of(st.none(), st.integers(1, 30))
NO_PARAMETERS = np.empty(0)


def clusters(count, groups, dimension, seed=7):
    """Tight groups far apart, their members in random order."""
    rng = np.random.default_rng(seed)
    centres = 10.0 * rng.standard_normal((groups, dimension))
    member = rng.integers(0, groups, count)
    return centres[member] + 0.1 * rng.standard_normal((count, dimension)), member


def slow_greedy(points, start):
    """The definition, one distance at a time."""
    left = list(range(len(points)))
    at = start
    order = [left.pop(left.index(at))]
    while left:
        at = min(left, key=lambda i: (np.linalg.norm(points[i] - points[at]), i))
        order.append(left.pop(left.index(at)))
    return order


# -- order ---------------------------------------------------------------------------------------------------------


@given(ANY_FEATURES, WINDOWS)
@settings(deadline=None, max_examples=40)
def test_every_window_keeps_its_ids_each_once_whatever_the_features(features, window):
    order = nearest_order(features, window=window)
    count = len(features)
    assert order.dtype == np.int64
    for first in range(0, count, window or count):
        last = min(first + (window or count), count)
        assert sorted(order[first:last]) == list(range(first, last))
    assert np.array_equal(order, nearest_order(features.copy(), window=window))


@given(FINITE_FEATURES, WINDOWS, st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_path_is_never_longer_than_that_of_the_ids(features, window, started):
    start = features[-1] if started else None
    order = nearest_order(features, window=window, start=start)
    gain = path_gain(features, order, start=start)
    assert gain.path <= gain.given
    assert gain.links == len(features) - (not started)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dimension", [1, 3, 12])
def test_the_chain_is_the_one_of_the_definition(dimension, seed):
    points = np.random.default_rng(seed).standard_normal((40, dimension))
    first = int(np.argmax(np.linalg.norm(points - points.mean(axis=0), axis=1)))
    assert nearest_order(points, window=None).tolist() == slow_greedy(points, first)


def test_windows_beyond_the_table_give_the_same_order(monkeypatch):
    points = np.random.default_rng(3).standard_normal((150, 5))
    expected = nearest_order(points, window=60)
    monkeypatch.setattr(sorting, "LARGEST_TABLE", 20)
    assert np.array_equal(nearest_order(points, window=60), expected)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-200, 0.0), (1e305, 0.0), (1.0, 1e6)])
def test_one_parameter_is_sorted(scale, offset):
    values = scale * np.random.default_rng(3).permutation(200).astype(float) + offset
    path = values[nearest_order(values[:, None], window=None)]
    assert np.array_equal(path, np.sort(values)) or np.array_equal(path, np.sort(values)[::-1])


def test_a_window_starts_next_to_the_end_of_the_one_before():
    values = np.concatenate([[3.0, 1.0, 2.0, 0.0], [7.0, 4.0, 6.0, 5.0], [0.5, 9.0, 8.0, 1.5]])[:, None]
    path = values[nearest_order(values, window=4), 0]
    assert path.tolist() == [3.0, 2.0, 1.0, 0.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.5, 0.5]


def test_a_start_decides_where_the_first_window_begins():
    values = np.array([[2.0], [-0.5], [3.0], [1.0]])
    assert nearest_order(values, window=None, start=np.array([-1.0])).tolist() == [1, 3, 0, 2]
    assert nearest_order(values, window=None, start=np.array([9.0])).tolist() == [2, 0, 3, 1]
    assert nearest_order(values, window=None, start=np.array([np.nan])).tolist() == [1, 3, 0, 2]


def test_where_the_chain_would_be_longer_the_ids_keep_their_order():
    points, start = np.array([[1.0], [3.5], [-1.2], [-10.0]]), np.array([0.0])
    chain = np.array(slow_greedy(points, 0))
    assert chain.tolist() == [0, 2, 1, 3]
    assert path_gain(points, chain, start=start).ratio > 1.2
    assert nearest_order(points, window=None, start=start).tolist() == [0, 1, 2, 3]


def test_of_two_equally_near_the_lower_id_comes_first():
    points = np.array([[4.0, 0.0], [0.0, 1.0], [-4.0, 0.0], [0.0, -1.0]])
    assert nearest_order(points, window=None, start=np.zeros(2)).tolist() == [1, 3, 0, 2]


def test_equal_samples_stay_together():
    member = np.random.default_rng(11).integers(0, 6, 120)
    points = np.random.default_rng(12).standard_normal((6, 4))[member]
    path = member[nearest_order(points, window=None)]
    assert np.count_nonzero(np.diff(path)) == 5


@pytest.mark.parametrize("features", [np.ones((9, 3)), np.empty((9, 0)), np.arange(9.0)[:, None], np.empty((0, 3))])
def test_samples_without_a_better_order_keep_theirs(features):
    assert nearest_order(features, window=4).tolist() == list(range(len(features)))


def test_samples_with_nan_go_to_the_end_of_their_window():
    values = np.array([[2.0], [np.nan], [0.0], [1.0], [np.inf], [5.0], [3.0], [4.0]])
    order = nearest_order(values, window=4)
    assert order.tolist() == [0, 3, 2, 1, 6, 7, 5, 4]
    assert path_gain(values, order).path == pytest.approx(7.0)


def test_clusters_are_visited_one_after_the_other():
    features, member = clusters(400, 8, 6)
    order = nearest_order(features, window=None)
    assert np.count_nonzero(np.diff(member[order])) == 7
    assert path_gain(features, order).ratio < 0.05


def test_a_wider_window_gains_more():
    features = np.random.default_rng(5).random((512, 3))
    ratios = [path_gain(features, nearest_order(features, window=window)).ratio for window in (1, 8, 64, 512)]
    assert ratios[0] == 1.0
    assert all(wider < 0.85 * narrower for narrower, wider in itertools.pairwise(ratios))


def test_the_largest_intermediate_array_is_a_window_squared(monkeypatch):
    sizes = []
    product = sorting._greedy
    monkeypatch.setattr(sorting, "_greedy", lambda points, start: sizes.append(len(points)) or product(points, start))
    nearest_order(np.random.default_rng(5).random((1000, 3)), window=64)
    assert sizes == [64] * 15 + [40]


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_without_samples_is_refused(window):
    with pytest.raises(ValueError, match=rf"window = {window} holds no sample; it must be at least 1"):
        nearest_order(np.ones((3, 2)), window=window)


def test_misshapen_features_are_refused():
    with pytest.raises(ValueError, match=r"features of shape \(3,\); they must have shape"):
        nearest_order(np.ones(3), window=2)
    with pytest.raises(ValueError, match=r"start has shape \(3,\), the samples have 2 features"):
        nearest_order(np.ones((3, 2)), window=2, start=np.ones(3))


# -- gain ----------------------------------------------------------------------------------------------------------


def test_gains_add_up():
    features = np.array([[0.0], [2.0], [1.0]])
    gain = path_gain(features, np.array([0, 2, 1]), seconds=0.25)
    assert gain == PathGain(links=2, given=3.0, path=2.0, seconds=0.25)
    assert gain.ratio == pytest.approx(2 / 3)
    assert gain + PathGain(1, 1.0, 1.0, 0.5) == PathGain(3, 4.0, 3.0, 0.75)
    assert PathGain(0, 0.0, 0.0, 0.0).ratio == 1.0


def test_the_path_from_the_last_sample_of_before_counts():
    gain = path_gain(np.array([[1.0], [2.0]]), np.array([1, 0]), start=np.array([4.0]))
    assert (gain.links, gain.given, gain.path) == (2, 4.0, 3.0)


# -- features ------------------------------------------------------------------------------------------------------


def grid_schema(*shape, parameters=()):
    names = ("z", "y", "x")[-len(shape) :]
    coordinates = tuple(Coordinate(name, (name,), np.arange(n) / n) for name, n in zip(names, shape, strict=True))
    return Schema(parameters, (Field("f", names, shape),), (), coordinates)


def example_draws(schema, transform=lambda field: field, count=6, parameters=None):
    rng = np.random.default_rng(17)
    shapes = {field.name: field.shape for field in schema.inputs}
    return [
        {
            **{name: transform(rng.standard_normal(shape)) for name, shape in shapes.items()},
            "parameters": NO_PARAMETERS if parameters is None else parameters[k],
        }
        for k in range(count)
    ]


@pytest.mark.parametrize("shape", [(30,), (12, 20), (8, 9, 10)])
def test_on_a_grid_features_are_the_truncated_cosine_transform(shape):
    schema = grid_schema(*shape)
    draws = example_draws(schema)
    features = FeatureMap(schema, draws, modes=3)
    found = np.stack([features(draw) for draw in draws])
    low = tuple(slice(3) for _ in shape)
    expected = np.stack([dctn(draw["f"], norm="ortho")[low].ravel() for draw in draws])
    expected /= np.sqrt(expected.var(axis=0).sum())
    assert features.dimension == found.shape[1] == 3 ** len(shape)
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_logarithm_of_block_means_is_close_to_that_of_the_field():
    problem = Darcy(size=32, coefficient="log_normal", alpha=3.0)
    draws = [
        {**problem.draw(NO_PARAMETERS, sample_generator(3, "features", k)), "parameters": NO_PARAMETERS}
        for k in range(30)
    ]
    features = FeatureMap(problem.schema, draws)
    found = np.stack([features(draw) for draw in draws])
    exact = np.stack([dctn(np.log(draw["a"]), norm="ortho")[:4, :4].ravel() for draw in draws])
    exact /= np.sqrt(exact.var(axis=0).sum())
    assert np.linalg.norm(found - exact) < 0.1 * np.linalg.norm(exact)


def test_a_positive_field_counts_by_ratios_another_by_differences():
    schema = grid_schema(8, 8)
    positive = FeatureMap(schema, example_draws(schema, np.exp))
    signed = FeatureMap(schema, example_draws(schema))
    field = np.random.default_rng(3).random((8, 8)) + 1.0
    steps = [{"f": factor * field} for factor in (1.0, 2.0, 4.0)]
    first, second = np.diff([positive(draw) for draw in steps], axis=0)
    assert np.allclose(first, second)
    assert np.linalg.norm(first) > 0.1
    first, second = np.diff([signed(draw) for draw in steps], axis=0)
    assert np.allclose(2 * first, second)


def test_a_value_without_logarithm_shows_as_not_finite():
    schema = grid_schema(8, 8)
    features = FeatureMap(schema, example_draws(schema, np.exp))
    assert not np.isfinite(features({"f": -np.ones((8, 8))})).any()
    assert not np.isfinite(features({"f": np.full((8, 8), np.nan)})).any()


def test_parameters_have_mean_zero_and_deviation_one():
    parameters = (
        Parameter("u", 2.0, 10.0),
        Parameter("l", 1e-3, 1e3, distribution="log_uniform"),
        Parameter("n", -1.0, 5.0, distribution="normal"),
    )
    units = (np.arange(2000) + 0.5) / 2000
    values = np.array([[p.quantile(float(unit)) for p in parameters] for unit in units])
    features = FeatureMap(Schema(parameters, (), ()), [{"parameters": row} for row in values[:2]])
    found = np.stack([features({"parameters": row}) for row in values])
    assert features.dimension == 3
    assert np.allclose(found.mean(axis=0), 0.0, atol=1e-9)
    assert np.allclose(found.std(axis=0), 1.0, rtol=2e-3)


def test_each_field_weighs_as_much_as_a_parameter_and_a_constant_one_nothing():
    dims, shape = ("y", "x"), (8, 8)
    schema = Schema(
        (),
        (Field("f", dims, shape), Field("g", dims, shape), Field("same", dims, shape)),
        (),
        grid_schema(8, 8).coordinates,
    )
    draws = example_draws(schema, count=9)
    same = np.random.default_rng(3).standard_normal(shape)
    for draw in draws:
        draw["g"] *= 1e5
        draw["same"] = same
    features = FeatureMap(schema, draws, modes=2)
    found = np.stack([features(draw) for draw in draws])
    assert found.shape == (9, 8)
    assert found[:, :4].var(axis=0).sum() == pytest.approx(1.0)
    assert found[:, 4:].var(axis=0).sum() == pytest.approx(1.0)


def test_on_a_mesh_the_numbering_of_the_nodes_does_not_matter():
    rng = np.random.default_rng(3)
    x, y = rng.random((2, 300))
    shuffle = rng.permutation(300)

    def mesh(order):
        places = (Coordinate("node_x", ("node",), x[order]), Coordinate("node_y", ("node",), y[order]))
        return Schema((), (Field("f", ("node",), (300,)),), (), places)

    draws = [{"f": np.cos(a * x + b * y)} for a, b in rng.uniform(0, 4, (12, 2))]
    features = FeatureMap(mesh(np.arange(300)), draws)
    shuffled = FeatureMap(mesh(shuffle), [{"f": draw["f"][shuffle]} for draw in draws])
    assert features.dimension == 16
    for draw in draws:
        assert np.allclose(features(draw), shuffled({"f": draw["f"][shuffle]}))


def test_without_coordinates_distances_survive_on_average():
    schema = Schema((), (Field("f", ("node",), (500,)),), ())
    draws = example_draws(schema, count=40)
    features = FeatureMap(schema, draws, modes=8)
    found, whole = (np.stack([f(draw) for draw in draws]) for f in (features, lambda draw: draw["f"]))
    first, second = np.triu_indices(40, 1)
    ratio = np.linalg.norm(found[first] - found[second], axis=1) / np.linalg.norm(whole[first] - whole[second], axis=1)
    assert features.dimension == 64
    assert ratio.std() < 0.15 * ratio.mean()


@pytest.mark.parametrize("shape", [(), (3,), (2, 30)])
def test_short_axes_are_kept_whole(shape):
    dims = ("component", "x")[: len(shape)]
    schema = Schema((), (Field("f", dims, shape),), (), (Coordinate("x", ("x",), np.arange(30.0)),))
    draws = example_draws(schema)
    found = np.stack([FeatureMap(schema, draws)(draw) for draw in draws])
    values = np.stack([draw["f"] for draw in draws])
    if len(shape) == 2:
        values = dctn(values, norm="ortho", axes=2)[:, :, :4]
    values = values.reshape(6, -1)
    assert np.allclose(found, values / np.sqrt(values.var(axis=0).sum()))


@pytest.mark.parametrize("transform", [np.exp, np.sin])
def test_many_samples_at_once_have_the_features_of_each(transform):
    parameters = (Parameter("p", 1.0, 3.0), Parameter("q", 1.0, 9.0, distribution="log_uniform"))
    schema = grid_schema(9, 8, parameters=parameters)
    draws = example_draws(schema, transform, parameters=np.linspace(1.0, 3.0, 12).reshape(6, 2))
    features = FeatureMap(schema, draws, modes=3)
    together = features.matrix(draw for draw in draws)
    assert together.shape == (6, features.dimension) == (6, 11)
    assert np.allclose(together, [features(draw) for draw in draws], rtol=1e-13)
    assert features.matrix([]).shape == (0, 11)


def test_a_problem_without_inputs_has_no_features():
    features = FeatureMap(Schema((), (), ()), [{"parameters": NO_PARAMETERS}] * 2)
    assert features({"parameters": NO_PARAMETERS}).shape == (features.dimension,) == (0,)


def test_features_depend_on_their_draw_alone():
    schema = grid_schema(8, 8)
    draws = example_draws(schema, np.exp)
    first, second = FeatureMap(schema, draws), FeatureMap(schema, draws)
    forward = [first(draw) for draw in draws]
    backward = [second(draw) for draw in reversed(draws)]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_bad_settings_are_refused():
    schema = grid_schema(8, 8)
    with pytest.raises(ValueError, match=r"modes = 0 keeps nothing of a field; it must be at least 1"):
        FeatureMap(schema, example_draws(schema), modes=0)
    with pytest.raises(ValueError, match=r"1 examples have no deviation; draw at least 2"):
        FeatureMap(schema, example_draws(schema, count=1))
