"""One training step: schedules, clipping, precision, and batches that are not finite."""

import logging
import math

import pytest
import torch

from forebay.learners.step import SCHEDULES, TrainOptions, learning_rate, make_state, train_step
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig, TensorSpec
from forebay.pipeline.errors import RunError, StudyError
from forebay.pipeline.study import LearnerTable


def small_surrogate(seed=7, outputs=1):
    io = IOSpec(
        (TensorSpec("a", ("x",), (12,)),),
        tuple(TensorSpec(f"u{i}", ("x",), (12,)) for i in range(outputs)),
        ("k",),
        spacing=(1 / 12,),
    )
    return Surrogate(SurrogateConfig(io, "fno", {"width": 8, "modes": 6, "layers": 2, "projection": 8}), seed=seed)


def frames(count=8, seed=3, outputs=1):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, 12, generator=generator)
    k = torch.rand(count, 1, generator=generator)
    return {"a": a, "parameters": k} | {f"u{i}": (i + 1) * a.roll(1, 1) + k for i in range(outputs)}


def weights(surrogate):
    return torch.cat([p.detach().flatten() for p in surrogate.model.parameters()]).clone()


def test_a_step_returns_a_new_state_and_lowers_the_loss():
    state = make_state(small_surrogate(), TrainOptions(batches=60, lr=1e-2))
    batch = frames()
    first_state = state
    losses = []
    for _ in range(60):
        state, metrics = train_step(state, batch)
        losses.append(metrics.loss)
    assert (first_state.batches, state.batches) == (0, 60)
    assert losses[-1] < 0.3 * losses[0]


def test_metrics_hold_the_loss_of_every_frame_and_the_rate_that_was_used():
    options = TrainOptions(batches=50, lr=1e-2, schedule="cosine", warmup=10)
    state, metrics = train_step(make_state(small_surrogate(outputs=2), options), frames(outputs=2))
    assert metrics.per_frame.shape == (8,)
    assert not metrics.per_frame.requires_grad
    assert metrics.loss == pytest.approx(float(metrics.per_frame.mean()), rel=1e-6)
    assert (metrics.batch, metrics.lr, metrics.skipped) == (0, pytest.approx(1e-3), False)
    assert state.lr == pytest.approx(2e-3)


def test_the_loss_of_several_outputs_is_the_mean_of_their_losses():
    surrogate, batch = small_surrogate(outputs=2), frames(outputs=2)
    predictions = surrogate(batch)
    errors = [(predictions[n] - batch[n]).norm(dim=1) / batch[n].norm(dim=1) for n in ("u0", "u1")]
    _, metrics = train_step(make_state(surrogate, TrainOptions()), batch)
    assert torch.allclose(metrics.per_frame, torch.stack(errors).mean(0), rtol=1e-5)


def test_one_cycle_follows_the_schedule_of_torch():
    options = TrainOptions(batches=97, lr=3e-3, schedule="one_cycle")
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=97, cycle_momentum=False)
    rates = []
    for _ in range(97):
        rates.append(reference.get_last_lr()[0])
        optimiser.step()
        if len(rates) < 97:
            reference.step()
    assert [learning_rate(options, i) for i in range(97)] == pytest.approx(rates, rel=1e-9)


def test_cosine_warms_up_linearly_and_comes_down_to_nearly_nothing():
    options = TrainOptions(batches=100, lr=2.0, schedule="cosine", warmup=20)
    assert [learning_rate(options, i) for i in (0, 9, 19, 20, 60)] == pytest.approx([0.1, 1.0, 2.0, 2.0, 1.0])
    assert learning_rate(options, 99) == pytest.approx(1 - math.cos(math.pi / 80), rel=1e-9)


def test_step_and_constant_schedules_have_their_exact_values():
    stepped = TrainOptions(lr=0.8, schedule="step", step_every=10, step_factor=0.5)
    assert [learning_rate(stepped, i) for i in (0, 9, 10, 25)] == pytest.approx([0.8, 0.8, 0.4, 0.2])
    assert learning_rate(TrainOptions(lr=0.8, schedule="constant"), 12345) == 0.8


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("batches", [1, 2, 3, 7])
def test_every_schedule_is_positive_and_bounded_for_short_and_overlong_trainings(schedule, batches):
    options = TrainOptions(batches=batches, lr=0.5, schedule=schedule)
    rates = [learning_rate(options, i) for i in range(batches + 5)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_the_optimiser_uses_the_rate_of_the_schedule():
    """AdamW's first update has the size of its learning rate wherever the gradient is not tiny."""
    surrogate = small_surrogate()
    before = weights(surrogate)
    train_step(make_state(surrogate, TrainOptions(schedule="constant", lr=1e-4, weight_decay=0.0)), frames())
    moved = (weights(surrogate) - before).abs()
    assert float(moved.max()) == pytest.approx(1e-4, rel=1e-2)
    assert float(moved.median()) == pytest.approx(1e-4, rel=1e-2)


def test_gradients_are_clipped_and_their_own_norm_is_told():
    surrogates = [small_surrogate(), small_surrogate()]
    options = {"schedule": "constant", "lr": 1e-3}
    _, clipped = train_step(make_state(surrogates[0], TrainOptions(clip=1e-3, **options)), frames())
    _, free = train_step(make_state(surrogates[1], TrainOptions(clip=None, **options)), frames())
    assert clipped.gradient_norm == pytest.approx(free.gradient_norm)
    norms = [torch.cat([p.grad.flatten() for p in s.model.parameters()]).norm() for s in surrogates]
    assert float(norms[0]) == pytest.approx(1e-3, rel=1e-3)
    assert float(norms[1]) == pytest.approx(free.gradient_norm, rel=1e-5)


def test_biases_are_not_decayed_and_matrices_are():
    state = make_state(small_surrogate(), TrainOptions(weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in state.optimiser.param_groups for p in g["params"]}
    for name, parameter in state.surrogate.model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") else 0.3), name


def test_bf16_trains_in_low_precision_with_float32_weights_and_physical_outputs():
    options = TrainOptions(batches=40, lr=1e-2, precision="bf16")
    low, full = make_state(small_surrogate(), options), make_state(small_surrogate(), TrainOptions(batches=40, lr=1e-2))
    batch = frames()
    low, first_low = train_step(low, batch)
    full, first_full = train_step(full, batch)
    assert first_low.loss != first_full.loss
    assert first_low.loss == pytest.approx(first_full.loss, rel=0.02)
    for _ in range(39):
        low, metrics = train_step(low, batch)
    assert metrics.loss < 0.5 * first_low.loss
    assert {p.dtype for p in low.surrogate.parameters()} == {torch.float32}
    assert low.surrogate(batch)["u0"].dtype == torch.float32


def test_a_non_finite_batch_is_skipped_counted_and_leaves_the_weights_alone(caplog):
    state, _ = train_step(make_state(small_surrogate(), TrainOptions(bad_batches=3)), frames())
    before, moments = weights(state.surrogate), state.optimiser.state_dict()["state"][0]["exp_avg"].clone()
    bad = frames()
    bad["u0"][2, 5] = math.nan
    with caplog.at_level(logging.WARNING):
        state, metrics = train_step(state, bad)
    assert metrics.skipped
    assert math.isnan(metrics.loss)
    assert (state.batches, state.skipped, state.skipped_in_a_row) == (2, 1, 1)
    assert "batch 1 skipped: loss nan" in caplog.text
    assert torch.equal(weights(state.surrogate), before)
    assert torch.equal(state.optimiser.state_dict()["state"][0]["exp_avg"], moments)
    state, metrics = train_step(state, frames())
    assert (metrics.skipped, state.skipped, state.skipped_in_a_row) == (False, 1, 0)
    assert not torch.equal(weights(state.surrogate), before)


def test_an_infinite_gradient_of_a_finite_loss_is_skipped_too():
    surrogate = small_surrogate()
    before = weights(surrogate)
    surrogate.model.project[0].weight.register_hook(lambda gradient: gradient * math.inf)
    state, metrics = train_step(make_state(surrogate, TrainOptions()), frames())
    assert math.isfinite(metrics.loss)
    assert metrics.skipped
    assert torch.equal(weights(state.surrogate), before)


def test_several_bad_batches_in_a_row_stop_the_run_with_advice():
    state = make_state(small_surrogate(), TrainOptions(bad_batches=3, lr=0.25))
    bad = frames()
    bad["a"][0, 0] = math.inf
    for _ in range(2):
        state, _ = train_step(state, bad)
    with pytest.raises(RunError, match=r"3 batches in a row up to batch 2 .*diverged; lower learner\.lr = 0\.25"):
        train_step(state, bad)


def test_two_runs_from_one_seed_are_bit_equal():
    results = []
    for _ in range(2):
        state = make_state(small_surrogate(), TrainOptions(batches=10, lr=1e-2))
        for i in range(10):
            state, _ = train_step(state, frames(seed=2 * i + 3))
        results.append(weights(state.surrogate))
    assert torch.equal(*results)


def test_a_wrapper_is_called_in_place_of_the_surrogate():
    surrogate = small_surrogate()
    calls = []

    def wrapper(batch):
        calls.append(len(batch["a"]))
        return surrogate(batch)

    train_step(make_state(surrogate, TrainOptions(), forward=wrapper), frames())
    assert calls == [8]


def test_options_come_from_a_study_under_the_same_names():
    table = LearnerTable(lr=5e-3, schedule="cosine", warmup=7, clip=None, precision="bf16", loss="mse")
    options = TrainOptions.from_study(table, batches=321)
    assert options == TrainOptions(
        batches=321, lr=5e-3, schedule="cosine", warmup=7, clip=None, precision="bf16", loss="mse", weight_decay=1e-4
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"lr": 0}, r"learner\.lr = 0 .*a finite number > 0; the default is 0\.001"),
        ({"lr": "fast"}, r"learner\.lr = 'fast' is not allowed: it should be a finite number"),
        ({"schedule": "onecycle"}, r"learner\.schedule = 'onecycle' .*one of 'one_cycle', 'cosine', 'step'"),
        ({"batch": 5}, r"learner\.batch = 5 is not a known key; did you mean 'batches'\?"),
        ({"clip": -1.0}, r"learner\.clip = -1\.0 .*a finite number > 0"),
        ({"schedule": "cosine", "warmup": 50, "batches": 50}, r"learner\.warmup = 50 is not below .*use at most 49"),
    ],
)
def test_a_bad_training_option_names_key_value_constraint_and_remedy(table, message):
    with pytest.raises(StudyError, match=message):
        TrainOptions.from_table(table)
