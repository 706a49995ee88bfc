"""Errors of a surrogate in physical units, and the frames that a report shows."""

import numpy as np
import pytest
import torch

from forebay.learners.evaluate import Evaluation, evaluate, examples
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig, TensorSpec


class Offset(torch.nn.Module):
    """Predicts the input field plus a known share of itself, read from a scalar."""

    any_grid = True

    def forward(self, fields, scalars):
        factors = torch.tensor([1.0, 1.5])[:, None, None]
        return (fields * (1 + scalars[:, :, None, None])).expand(-1, 2, -1, -1) * factors


def known_surrogate():
    dims, grid = ("y", "x"), (4, 3)
    io = IOSpec(
        (TensorSpec("a", dims, grid),), (TensorSpec("u", dims, grid, "m"), TensorSpec("v", dims, grid)), ("share",)
    )
    surrogate = Surrogate(SurrogateConfig(io, "mlp", {"hidden": [2]}))
    surrogate.model = Offset()
    return surrogate


def known_frames(count=101, seed=3):
    """u is hit with the relative error share; v with |1.5 (1 + share) - 1|."""
    a = torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(seed))
    share = torch.linspace(0, 1, count)[torch.randperm(count, generator=torch.Generator().manual_seed(5))]
    return {"a": a, "parameters": share[:, None], "u": a.clone(), "v": a.clone()}


@pytest.mark.parametrize("batch_size", [1, 7, 101, 500])
def test_errors_have_their_exact_values_whatever_the_batch_size(batch_size):
    data = known_frames()
    share = data["parameters"][:, 0].double().numpy()
    evaluation = evaluate(known_surrogate(), data, batch_size)
    np.testing.assert_allclose(evaluation.by_output["u"], share, atol=1e-6)
    np.testing.assert_allclose(evaluation.by_output["v"], 0.5 + 1.5 * share, atol=1e-6)
    expected = (0.5 + 2.5 * share) / 2
    np.testing.assert_allclose(evaluation.errors, expected, atol=1e-6)
    assert evaluation.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert evaluation.max == pytest.approx(1.5, rel=1e-5)
    assert evaluation.p99 == pytest.approx(np.sort(expected)[99], rel=1e-5)
    assert evaluation.seconds > 0
    assert evaluation.summary()["relative_l2"] == evaluation.mean


def test_errors_are_physical_so_normalisation_does_not_hide_an_offset():
    """Against u = 1000 ± 1 a prediction that is off by 1 is a relative error of 1e-3, not of 1."""
    surrogate = known_surrogate()
    data = known_frames(20)
    data |= {"u": 1000 + data["a"], "v": 1000 + data["a"]}
    surrogate.observe(data)
    with torch.no_grad():
        prediction = surrogate(data)["u"].double()
    expected = ((prediction - data["u"]).flatten(1).norm(dim=1) / data["u"].double().flatten(1).norm(dim=1)).numpy()
    np.testing.assert_allclose(evaluate(surrogate, data).by_output["u"], expected, rtol=1e-5)
    assert expected.max() < 0.02


def test_best_median_and_worst_frames_come_with_inputs_references_and_predictions():
    data = known_frames()
    surrogate = known_surrogate()
    shown = examples(surrogate, data, evaluate(surrogate, data))
    assert shown["labels"].tolist() == ["best", "median", "worst"]
    np.testing.assert_allclose(shown["parameters"][:, 0], [0.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(shown["errors"], [0.25, 0.875, 1.5], atol=1e-6)
    rows = shown["rows"]
    np.testing.assert_array_equal(shown["input/a"], data["a"].numpy()[rows])
    np.testing.assert_array_equal(shown["reference/v"], data["v"].numpy()[rows])
    np.testing.assert_allclose(shown["prediction/u"][2], 2 * shown["input/a"][2], rtol=1e-6)
    assert set(shown) == {
        *("labels", "rows", "errors", "parameters", "input/a"),
        *("reference/u", "reference/v", "prediction/u", "prediction/v"),
    }


def test_one_frame_is_best_median_and_worst_at_once():
    assert Evaluation(np.array([0.3]), {}, 0.1).representatives == {"best": 0, "median": 0, "worst": 0}


def test_a_prediction_that_is_not_finite_is_the_worst_of_all():
    data = known_frames(9)
    data["parameters"][4] = torch.nan
    evaluation = evaluate(known_surrogate(), data)
    assert evaluation.max == np.inf
    assert evaluation.representatives["worst"] == 4
    assert np.isfinite(np.delete(evaluation.errors, 4)).all()


def test_a_reference_of_zeros_shows_as_a_large_finite_error():
    data = known_frames(3)
    data["u"][1] = 0
    error = evaluate(known_surrogate(), data).by_output["u"][1]
    assert np.isfinite(error)
    assert error > 1e4


def test_evaluating_leaves_the_surrogate_in_the_mode_it_was_in_and_without_gradients():
    surrogate = known_surrogate().train()
    evaluate(surrogate, known_frames(5))
    assert surrogate.training
    assert evaluate(surrogate.eval(), known_frames(5)).mean > 0
    assert not surrogate.training


def test_data_without_frames_or_without_an_output_are_refused():
    data = known_frames(3)
    with pytest.raises(ValueError, match=r"have no frames; a validation set needs at least one valid sample"):
        evaluate(known_surrogate(), {name: values[:0] for name, values in data.items()})
    data.pop("v")
    with pytest.raises(ValueError, match=r"lack the output fields \['v'\]; they have \['a', 'parameters', 'u'\]"):
        evaluate(known_surrogate(), data)
