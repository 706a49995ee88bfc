"""Where a learner's weights, ring and validation data lie, and that what a device has solved is not fetched back."""

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from forebay.learners.device import learner_device
from forebay.learners.frames import frames_of
from forebay.learners.learner import StreamLearner
from forebay.learners.losses import LOSSES, make_loss
from forebay.learners.normalise import Normaliser
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig
from forebay.pipeline.errors import StudyError
from forebay.pipeline.plan import make_plan
from forebay.pipeline.records import ChunkPlan, Coordinate, Field, Outcome, Parameter, Schema
from forebay.pipeline.study import study_from_dict
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.heat import Heat

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
# Torch's backend takes the GPU where there is one.
DEVICES = (
    pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="solved on the GPU")),
    pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU]),
)
PROBLEMS = {"darcy": Darcy(size=16), "heat": Heat(size=8, steps=3)}
PLANS = {"train": ChunkPlan("train", 8, 4), "validation": ChunkPlan("validation", 4, 4)}


def solved(problem, split="train", chunk=0):
    solver = BlockSolver(problem, Method("batched", backend="torch"), run_seed=13, plans=PLANS, keep_resident=True)
    block = solver.solve_block(split, chunk)
    solver.destroy()
    return block


def study_on(device, batches=6):
    return study_from_dict(
        {
            "name": "resident",
            "samples": 8,
            "problem": {"name": "any.py:Any"},
            "validation": {"samples": 4},
            "buffer": {"capacity": 24},
            "learner": {
                "model": {"name": "mlp", "hidden": [8]},
                "batch_size": 4,
                "batches": batches,
                "device": device,
                "freeze_normaliser_after": 10,
            },
            "dataset": {"block_samples": 4},
        }
    )


def opened(folder, schema, device, blocks=(), *, resume=False):
    study = study_on(device)
    by_key = {(block.split, block.chunk): block for block in blocks}
    return StreamLearner.open(
        schema,
        study.learner,
        make_plan(study, schema, cores=1),
        policy="reservoir",
        validate_every=1000,
        seed=2026,
        folder=folder,
        clock_zero=time.time(),
        keep_checkpoints=1,
        load=by_key.__getitem__,
        resume=resume,
    )


def on_host(block):
    """As a block comes from another process."""
    return replace(block, resident={})


def spoilt(block):
    """Output fields on the host are not those that were solved."""
    for field in block.resident:
        block.arrays[field][:] = 7
    return block


@contextmanager
def host_traffic(monkeypatch):
    """Shapes of all that becomes numpy, or comes from it, in the meantime."""
    shapes = []

    def noted(owner, name, shape_of):
        original = getattr(owner, name)

        def call(first, *args, **kwargs):
            if owner is not torch or not isinstance(first, torch.Tensor):  # as_tensor of a tensor is itself
                shapes.append(tuple(shape_of(first)))
            return original(first, *args, **kwargs)

        context.setattr(owner, name, call)

    with monkeypatch.context() as context:
        for name in ("from_numpy", "as_tensor", "tensor"):
            noted(torch, name, np.shape)
        for name in ("numpy", "cpu", "tolist", "__array__"):
            noted(torch.Tensor, name, lambda tensor: tensor.shape)
        yield shapes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_fields_go_from_the_solve_to_the_batch_without_the_host(tmp_path, monkeypatch, name, device):
    block = solved(PROBLEMS[name])
    wanted = block.arrays["u"].copy()
    learner = opened(tmp_path, PROBLEMS[name].schema, device, [block])
    with host_traffic(monkeypatch) as shapes:
        assert learner.offer(spoilt(block))
        learner._normalise()
        batch = learner.ring.draw(4)
    grid = PROBLEMS[name].grid_shape
    carried = [shape for shape in shapes if shape[-2:] == grid]
    inputs = len(PROBLEMS[name].schema.inputs)
    assert len(carried) == 2 * inputs, "only inputs come from the host: once to the ring, once to the normaliser"
    assert batch.arrays["u"].device.type == device
    frames = wanted.reshape(-1, *grid)
    np.testing.assert_array_equal(batch.arrays["u"].cpu().numpy(), frames[batch.keys])
    mean = learner.state.surrogate.normaliser.statistics()["u"]["mean"]
    assert mean == pytest.approx(frames.mean(dtype=float), rel=1e-6)


def test_fields_of_another_process_come_from_the_host(tmp_path, monkeypatch):
    block = on_host(solved(PROBLEMS["darcy"]))
    learner = opened(tmp_path, PROBLEMS["darcy"].schema, "cpu")
    with host_traffic(monkeypatch) as shapes:
        assert learner.offer(block)
        learner._normalise()
    assert sum(shape[-2:] == (16, 16) for shape in shapes) == 4


def test_tensors_on_another_device_than_the_learners_are_not_taken():
    block = solved(PROBLEMS["darcy"])
    elsewhere = replace(block, resident={"u": block.resident["u"].to("meta")})
    for device in (None, torch.device("cpu")):
        _, arrays = frames_of(elsewhere, PROBLEMS["darcy"].schema, device)
        assert np.shares_memory(arrays["u"], block.arrays["u"])
    _, arrays = frames_of(block, PROBLEMS["darcy"].schema, block.resident["u"].device)
    assert arrays["u"].data_ptr() == block.resident["u"].data_ptr()


@pytest.mark.parametrize("name", PROBLEMS)
def test_frames_of_tensors_and_of_arrays_are_the_same_where_a_sample_is_left_out(name):
    problem, block = PROBLEMS[name], solved(PROBLEMS[name])
    records = [replace(r, outcome=Outcome.DIVERGED) if k == 1 else r for k, r in enumerate(block.records)]
    block = replace(block, records=records)
    keys, tensors = frames_of(block, problem.schema, block.resident["u"].device)
    _, arrays = frames_of(on_host(block), problem.schema)
    assert len(keys) == 3 * problem.schema.steps
    np.testing.assert_array_equal(tensors["u"].cpu().numpy(), arrays["u"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="solved on the GPU")
@pytest.mark.parametrize("name", PROBLEMS)
def test_training_from_tensors_and_from_arrays_gives_the_same_weights(tmp_path, name):
    blocks = [solved(PROBLEMS[name], "validation"), *(solved(PROBLEMS[name], chunk=c) for c in (0, 1))]
    found = {}
    for how, of in (("host", on_host), ("device", lambda block: block)):
        learner = opened(tmp_path / how, PROBLEMS[name].schema, "cpu")
        learner.add_validation(of(blocks[0]))
        for block in blocks[1:]:
            assert learner.offer(of(block))
            learner.advance(3)
        learner.end_production()
        learner.advance(99)
        assert learner.batches == 6
        found[how] = learner.state.surrogate.state_dict() | {"error": torch.tensor(learner.finish().mean)}
    assert all(torch.equal(value, found["host"][key]) for key, value in found["device"].items())


@pytest.mark.parametrize("device", DEVICES)
def test_validation_fields_are_kept_where_the_learner_is(tmp_path, device):
    block = solved(PROBLEMS["darcy"], "validation")
    wanted = block.arrays["u"].copy()
    learner = opened(tmp_path, PROBLEMS["darcy"].schema, device)
    learner.add_validation(block)
    spoilt(block)
    block.resident["u"].zero_()
    _, data = learner.validation.frames()
    assert {values.device.type for values in data.values()} == {device}
    np.testing.assert_array_equal(data["u"].cpu().numpy(), wanted)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cpu", "cpu"),
        pytest.param("cuda", "cpu", marks=[pytest.mark.gpu, NEEDS_GPU]),
        pytest.param("cpu", "cuda", marks=[pytest.mark.gpu, NEEDS_GPU]),
    ],
)
def test_a_checkpoint_goes_on_where_the_study_says(tmp_path, first, second):
    problem = PROBLEMS["darcy"]
    block = on_host(solved(problem))
    learner = opened(tmp_path, problem.schema, first)
    learner.offer(block)
    learner.advance(1)
    learner.checkpoint()
    again = opened(tmp_path, problem.schema, second, [block], resume=True)
    assert again.batches == learner.batches == 1
    surrogate = again.state.surrogate
    assert surrogate.device == again.ring.device == learner_device(second)
    for name, value in learner.state.surrogate.state_dict().items():
        assert torch.equal(surrogate.state_dict()[name].cpu(), value.cpu()), name
    moments = again.state.optimiser.state.values()
    assert {m["exp_avg"].device.type for m in moments} == {second}
    again.advance(1)
    assert again.batches == 2


def test_what_is_restored_is_put_where_the_ring_is(tmp_path, monkeypatch):
    from forebay.learners import learner as module

    asked, load = [], module.load_checkpoint
    monkeypatch.setattr(module, "load_checkpoint", lambda *a, device, **k: asked.append(device) or load(*a, **k))
    block = on_host(solved(PROBLEMS["darcy"]))
    learner = opened(tmp_path, PROBLEMS["darcy"].schema, "cpu")
    learner.offer(block)
    learner.checkpoint()
    opened(tmp_path, PROBLEMS["darcy"].schema, "cpu", [block], resume=True)
    assert asked == [learner.ring.device]


GRID = Schema(
    parameters=(Parameter("p", 0.0, 1.0),),
    inputs=(Field("a", ("y", "x"), (16, 16)),),
    outputs=(Field("u", ("y", "x"), (16, 16)),),
    coordinates=tuple(Coordinate(name, (name,), np.arange(16.0)) for name in ("y", "x")),
)


@pytest.mark.parametrize(("model", "options"), [("fno", {"modes": 4}), ("unet", {}), ("mlp", {"hidden": [8]})])
def test_models_and_losses_make_no_tensor_on_the_cpu_in_passing(model, options):
    io = IOSpec.from_schema(GRID)
    surrogate = Surrogate(SurrogateConfig(io, model, options)).to("meta")
    batch = {name: torch.empty(4, 16, 16, device="meta") for name in ("a", "u")}
    batch["parameters"] = torch.empty(4, 1, device="meta")
    prediction = surrogate(batch)["u"]
    with pytest.raises(RuntimeError, match="device"):
        surrogate({**batch, "a": torch.empty(4, 16, 16)})
    for loss in LOSSES:
        value = make_loss(loss, io)(prediction, batch["u"], surrogate.normaliser.output_scale("u"))
        assert value.device.type == "meta"


def test_a_normaliser_takes_tensors_and_arrays_together():
    rng = np.random.default_rng(7)
    arrays = {"a": rng.random((5, 16, 16)), "u": rng.random((5, 16, 16)), "parameters": rng.random((5, 1))}
    first, second = (Normaliser(IOSpec.from_schema(GRID)) for _ in range(2))
    first.update(arrays)
    second.update(arrays | {"u": torch.from_numpy(arrays["u"])})
    assert torch.equal(first.moments, second.moments)


@pytest.mark.parametrize("seen", [0, 2])
def test_auto_is_a_gpu_where_one_is_seen(monkeypatch, seen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert learner_device("cpu") == torch.device("cpu")
    assert learner_device("auto") == (torch.device("cuda", 1) if seen else torch.device("cpu"))
    if seen:
        assert learner_device("cuda") == torch.device("cuda", 1)
        assert learner_device("cuda:0") == torch.device("cuda", 0)
        with pytest.raises(StudyError, match=r"learner.device = 'cuda:2' needs .* \(it sees 2, numbered from 0\); use"):
            learner_device("cuda:2")
    else:
        for name in ("cuda", "cuda:0"):
            with pytest.raises(StudyError, match=rf"learner.device = '{name}' needs an NVIDIA GPU .* \(it sees none\)"):
                learner_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "mps", "CPU"])
def test_a_study_names_a_device_that_can_be_meant(name):
    with pytest.raises(StudyError, match=rf"learner.device: '{name}' is no device; use 'auto', 'cpu', 'cuda', or"):
        study_on(name)
