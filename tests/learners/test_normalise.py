"""Streaming statistics, and the interface that is read off a schema."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.learners.normalise import Normaliser, merge_moments, moments_of
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig, TensorSpec
from forebay.pipeline.errors import ProblemError
from forebay.pipeline.records import Coordinate, Field, Parameter, Schema


def transient_io():
    return IOSpec(
        inputs=(TensorSpec("a", ("y", "x"), (4, 5)), TensorSpec("trace", ("side",), (6,))),
        outputs=(TensorSpec("u", ("y", "x"), (4, 5), "K"), TensorSpec("v", ("y", "x"), (4, 5))),
        parameters=("k", "f"),
        times=(1.0, 2.0, 6.0),
    )


def samples(count, seed):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(300, 0.5, (count, 4, 5)).astype(np.float32),
        "trace": rng.normal(-2, 3, (count, 6)).astype(np.float32),
        "parameters": rng.uniform((1, 100), (2, 900), (count, 2)),
        "u": rng.normal(1e4, 7, (count, 3, 4, 5)).astype(np.float32),
        "v": rng.normal(0, 1e-6, (count, 3, 4, 5)).astype(np.float32),
    }


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), max_size=6, unique=True), offset=st.sampled_from([0.0, 1e4, -1e7]))
def test_merged_moments_equal_those_of_all_values_however_they_are_cut(cuts, offset):
    values = torch.as_tensor(offset + np.random.default_rng(7).standard_normal(60))
    total = torch.zeros(3, dtype=torch.float64)
    for part in torch.tensor_split(values, sorted(cuts)):
        total = merge_moments(total, moments_of(part))
    assert total[0] == 60
    assert float(total[1]) == pytest.approx(float(values.mean()), rel=1e-14)
    assert float((total[2] / 60).sqrt()) == pytest.approx(float(values.std(correction=0)), rel=1e-7)


def test_blocks_give_the_statistics_of_their_union_and_frames_are_counted_with_their_steps():
    first, second = samples(9, 11), samples(14, 13)
    normaliser = Normaliser(transient_io(), freeze_after=10_000)
    normaliser.update(first)
    normaliser.update({name: torch.as_tensor(values) for name, values in second.items()})
    both = {name: np.concatenate([first[name], second[name]]).astype(np.float64) for name in first}
    columns = [both["a"], both["trace"], both["parameters"][:, 0], both["parameters"][:, 1], both["u"], both["v"]]
    shown = list(normaliser.statistics().values())
    assert [s["mean"] for s in shown] == pytest.approx([c.mean() for c in columns], rel=1e-6)
    assert [s["std"] for s in shown] == pytest.approx([c.std() for c in columns], rel=1e-6)
    assert int(normaliser.frames) == (9 + 14) * 3


def test_encoded_frames_have_mean_zero_and_deviation_one_and_outputs_are_restored():
    data = samples(200, 17)
    normaliser = Normaliser(transient_io())
    normaliser.update(data)
    frames = {name: torch.as_tensor(np.asarray(data[name], np.float32)) for name in ("a", "trace", "parameters")}
    frames["time"] = torch.tensor([[1.0], [2.0], [6.0]]).repeat(67, 1)[:200]
    fields, scalars = normaliser.encode(frames)
    assert fields.shape == (200, 1, 4, 5)
    assert scalars.shape == (200, 2 + 1 + 6)
    assert float(fields.mean()) == pytest.approx(0, abs=1e-3)
    assert float(fields.std()) == pytest.approx(1, abs=2e-3)
    assert scalars[:, :2].mean(0).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert scalars[:, :2].std(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert scalars[:3, 2].tolist() == pytest.approx([-0.9258, -0.4629, 1.3887], abs=1e-4)
    restored = normaliser.restore(torch.ones(1, 2, 4, 5))
    assert restored[0, 0].mean().item() == pytest.approx(data["u"].mean() + data["u"].std(), rel=1e-6)
    assert restored[0, 1].mean().item() == pytest.approx(data["v"].mean() + data["v"].std(), rel=1e-4)


def test_statistics_stand_still_after_the_freeze():
    normaliser = Normaliser(transient_io(), freeze_after=30)
    assert normaliser.update(samples(9, 11))
    assert not normaliser.frozen
    assert normaliser.update(samples(2, 13))
    assert normaliser.frozen
    before = normaliser.moments.clone()
    assert not normaliser.update(samples(9, 19))
    assert torch.equal(normaliser.moments, before)


def test_a_constant_channel_is_shifted_and_not_blown_up():
    data = samples(6, 11)
    data["a"][:] = 0.1
    data["v"][:] = 0.0
    normaliser = Normaliser(transient_io())
    normaliser.update(data)
    shown = normaliser.statistics()
    assert shown["a"]["std"] == 1.0
    assert shown["v"] == {"mean": 0.0, "std": 1.0}
    fields, _ = normaliser.encode({"a": torch.full((1, 4, 5), 0.1), "trace": torch.zeros(1, 6),
                                   "parameters": torch.zeros(1, 2), "time": torch.zeros(1, 1)})  # fmt: skip
    assert float(fields.abs().max()) < 1e-6


def test_a_varying_channel_far_from_zero_is_not_taken_for_a_constant():
    data = samples(50, 11)
    data["u"][:] = 293.15 + 1e-3 * np.random.default_rng(3).standard_normal(data["u"].shape)
    normaliser = Normaliser(transient_io())
    normaliser.update(data)
    assert normaliser.statistics()["u"]["std"] == pytest.approx(1e-3, rel=0.05)


def test_statistics_travel_in_the_state_dict_exactly():
    first = Normaliser(transient_io(), freeze_after=20)
    first.update(samples(9, 11))
    second = Normaliser(transient_io(), freeze_after=20)
    second.load_state_dict(first.state_dict())
    assert bool(second.frozen)
    assert torch.equal(first.moments, second.moments)
    assert torch.equal(first.scale, second.scale)
    assert torch.equal(first.restore(torch.ones(1, 2, 4, 5)), second.restore(torch.ones(1, 2, 4, 5)))


def test_a_block_with_nan_is_refused_and_leaves_the_statistics_alone():
    normaliser = Normaliser(transient_io())
    normaliser.update(samples(3, 11))
    before = normaliser.moments.clone()
    bad = samples(3, 13)
    bad["u"][1, 0, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN or inf; pass valid samples only \(`Block\.valid_rows`\)"):
        normaliser.update(bad)
    assert torch.equal(normaliser.moments, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("u"), r"lacks 'u'; it has \['a', 'parameters', 'trace', 'v'\]"),
        (lambda d: d.update(parameters=d["parameters"][:, :1]), r"shape \(3, 1\); the last axis should be 2"),
        (lambda d: d.update(a=d["a"][:0]), r"'a' of a block for the normaliser is empty, shape \(0, 4, 5\)"),
    ],
)
def test_an_unusable_block_says_what_is_wrong(change, message):
    data = samples(3, 11)
    change(data)
    with pytest.raises(ValueError, match=message):
        Normaliser(transient_io()).update(data)


def axis(name, n, power=1.0):
    return Coordinate(name, (name,), np.linspace(0, 1, n) ** power)


def test_the_interface_is_read_off_a_grid_schema():
    schema = Schema(
        parameters=(Parameter("k", 1, 2),),
        inputs=(Field("a", ("y", "x"), (5, 9)), Field("g", ("side",), (28,))),
        outputs=(Field("u", ("y", "x"), (5, 9), "m"),),
        coordinates=(axis("y", 5), axis("x", 9)),
        times=(0.5, 1.0),
    )
    io = IOSpec.from_schema(schema)
    assert (io.grid, io.structured, io.transient, io.scalars) == ((5, 9), True, True, 1 + 1 + 28)
    assert [f.name for f in io.channels] == ["a"]
    assert [f.name for f in io.vectors] == ["g"]
    assert io.spacing == pytest.approx((0.25, 0.125))
    assert IOSpec.from_dict(io.to_dict()) == io


def test_scattered_points_are_no_grid_whatever_their_axis_is_called():
    def schema(dim, coordinates):
        return Schema((), (), (Field("u", (dim,), (6,)),), coordinates)

    points = np.random.default_rng(5).random(6)
    mesh = (Coordinate("px", ("n",), points), Coordinate("py", ("n",), points))
    assert not IOSpec.from_schema(schema("node", ())).structured
    assert not IOSpec.from_schema(schema("n", mesh)).structured
    assert IOSpec.from_schema(schema("x", (axis("x", 6),))).structured


def test_a_stretched_grid_is_a_grid_without_a_spacing():
    io = IOSpec.from_schema(Schema((), (), (Field("u", ("x",), (9,)),), (axis("x", 9, 2.0),)))
    assert io.structured
    assert io.spacing is None


def test_outputs_on_different_grids_or_none_at_all_are_refused():
    both = (Field("u", ("x",), (9,)), Field("w", ("x",), (10,)))
    with pytest.raises(ProblemError, match=r"'u' on \{'x': 9\}, 'w' on \{'x': 10\} differ in their grids"):
        IOSpec.from_schema(Schema((), (), both))
    with pytest.raises(ProblemError, match="no output field"):
        IOSpec.from_schema(Schema((), (), ()))


def small_surrogate(model="fno"):
    io = IOSpec((TensorSpec("a", ("x",), (16,)),), (TensorSpec("u", ("x",), (16,)),), ("k",))
    options = {"fno": {"width": 4, "modes": 3, "projection": 4}, "mlp": {"hidden": [8]}}[model]
    surrogate = Surrogate(SurrogateConfig(io, model, options), seed=7)
    rng = np.random.default_rng(7)
    data = {"a": 5 + rng.random((20, 16)), "u": 900 + rng.random((20, 16)), "parameters": rng.random((20, 1))}
    surrogate.observe(data)
    return surrogate


def test_predictions_from_numpy_are_physical_batched_and_leave_the_mode_as_it_was():
    surrogate = small_surrogate().train()
    inputs = {"a": 5 + np.random.default_rng(3).random((7, 16)), "parameters": np.full((7, 1), 0.5)}
    whole = surrogate.predict(inputs)["u"]
    assert whole.shape == (7, 16)
    assert whole.dtype == np.float32
    assert 890 < whole.mean() < 910
    np.testing.assert_allclose(surrogate.predict(inputs, batch_size=3)["u"], whole, rtol=1e-6)
    assert surrogate.training


def test_an_fno_predicts_on_a_finer_grid_and_an_mlp_refuses():
    inputs = {"a": np.full((2, 32), 5.0), "parameters": np.zeros((2, 1))}
    assert small_surrogate().predict(inputs)["u"].shape == (2, 32)
    with pytest.raises(ValueError, match=r"input 'a' has shape \(2, 32\); it should be \(n >= 1, 16\)"):
        small_surrogate("mlp").predict(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": np.zeros((2, 16))}, r"inputs lack \['parameters'\]; give every one of \['a', 'parameters'\]"),
        ({"a": np.zeros((2, 16)), "parameters": np.zeros((3, 1))}, r"with the same n for all inputs"),
        ({"a": np.zeros((0, 16)), "parameters": np.zeros((0, 1))}, r"'a' has shape \(0, 16\)"),
        ({"a": np.zeros((2, 4, 4)), "parameters": np.zeros((2, 1))}, r"'a' has shape \(2, 4, 4\)"),
        ({"a": np.zeros((2, 16)), "parameters": np.zeros((2, 2))}, r"'parameters' has shape \(2, 2\)"),
    ],
)
def test_predicting_from_wrong_arrays_says_what_is_expected(inputs, message):
    with pytest.raises(ValueError, match=message):
        small_surrogate().predict(inputs)
