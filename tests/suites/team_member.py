"""One rank of a team of learners in a process of its own: `python team_member.py TASK RANK SIZE PORT FOLDER`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from forebay.learners.learner import StreamLearner
from forebay.learners.step import TrainOptions, make_state, train_step
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig
from forebay.learners.team import TorchTeam, Word
from forebay.pipeline.plan import make_plan
from forebay.pipeline.records import Block, Field, Outcome, Parameter, Schema, SolveRecord
from forebay.pipeline.study import study_from_dict

SIZE, BATCH, STEPS = 8, 12, 7
SCHEMA = Schema(
    (Parameter("s", 0.0, 1.0),), (Field("a", ("y", "x"), (SIZE, SIZE)),), (Field("u", ("y", "x"), (SIZE, SIZE)),)
)
MODELS = {
    "fno": {"width": 6, "modes": 3, "layers": 2},
    "unet": {"width": 4, "levels": 2},
    "mlp": {"hidden": [16]},
}
BLOCK = 6
STUDY = {
    "name": "team",
    "samples": 96,
    "problem": {"name": "any.py:Any"},
    "validation": {"samples": 6, "every": 5},
    "buffer": {"threshold": 8},
    "learner": {
        "model": {"name": "mlp", "hidden": [8]},
        "batch_size": 8,
        "batches": 14,
        "freeze_normaliser_after": 40,
        "ranks": 2,
    },
    "dataset": {"block_samples": BLOCK},
}


def frames(step: int) -> dict[str, torch.Tensor]:
    """A whole batch."""
    generator = torch.Generator().manual_seed(311 + step)
    shape = (BATCH, SIZE, SIZE)
    return {
        "a": torch.randn(shape, generator=generator),
        "u": torch.randn(shape, generator=generator).cumsum(-1),
        "parameters": torch.rand((BATCH, 1), generator=generator),
    }


def train_steps(team, model: str) -> dict[str, torch.Tensor]:
    """A few steps on this rank's share of every batch: the weights, and "gradient.NAME" of the first batch."""
    torch.set_num_threads(1)
    surrogate = Surrogate(SurrogateConfig(IOSpec.from_schema(SCHEMA), model, MODELS[model], 1000), seed=7)
    first = frames(0)
    surrogate.normaliser.update({name: array.numpy() for name, array in first.items()})
    state = make_state(surrogate, TrainOptions(batches=STEPS), forward=team.wrap(surrogate))
    share = BATCH // team.size
    mine = slice(team.rank * share, (team.rank + 1) * share)
    for step in range(STEPS):
        state, _ = train_step(state, {name: array[mine] for name, array in frames(step).items()})
        if step == 0:
            gradients = {f"gradient.{n}": p.grad.clone() for n, p in surrogate.model.named_parameters()}
    return gradients | {name: tensor.detach().clone() for name, tensor in surrogate.state_dict().items()}


def block(split: str, chunk: int) -> Block:
    """Later blocks hold larger values, so that the normaliser moves with each."""
    ids = np.arange(chunk * BLOCK, (chunk + 1) * BLOCK)
    rng = np.random.default_rng(317 + chunk + (1000 if split == "validation" else 0))
    fields = {name: (chunk + 1) * rng.random((BLOCK, SIZE, SIZE), np.float32) for name in ("a", "u")}
    records = [SolveRecord(int(i), 7, Outcome.CONVERGED, "none", 0, 0.0, 0.0) for i in ids]
    return Block(split, chunk, ids, {"parameters": rng.random((BLOCK, 1)), **fields}, records)


def make(team, folder: Path, *, resume: bool) -> StreamLearner:
    """A learner of the study."""
    study = study_from_dict(STUDY)
    return StreamLearner.open(
        SCHEMA,
        study.learner,
        make_plan(study, SCHEMA, cores=2),
        policy="reservoir",
        validate_every=5,
        seed=331,
        folder=folder,
        clock_zero=time.time(),
        keep_checkpoints=3,
        load=lambda key: block(*key),
        resume=resume,
        team=team,
    )


def stream(team, folder: Path, chunks: range, *, save_around: bool = False) -> dict[str, object]:
    """Train on some chunks to the end; what came of it.  The first saves before and after, when the others do not."""
    resumed = (folder / "checkpoints").exists()
    learner = make(team, folder, resume=resumed)
    begun = learner.batches, sorted(learner.chunks)
    if team.rank == 0:
        learner.add_validation(block("validation", 0))
    for chunk in chunks:
        if chunk not in learner.chunks:
            learner.ingest(block("train", chunk))
    saves = save_around and team.rank == 0
    if saves:
        learner.checkpoint()
    learner.end_production()
    batches = learner.train()
    if saves:
        learner.checkpoint()
    normaliser = learner.state.surrogate.normaliser
    return {
        "begun": begun,
        "batches": batches,
        "chunks": sorted(learner.chunks),
        "moments": normaliser.moments.tolist(),
        "frames": int(normaliser.frames),
        "weights": [float(p.double().sum()) for p in learner.state.surrogate.parameters()],
    }


def main() -> None:
    task, rank, size, port, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
    team = TorchTeam(rank, size, f"127.0.0.1:{port}", torch.device("cpu"))
    if task == "agree":
        said = [Word(rank == 0), Word(True, save=rank == 1), Word(True, exhausted=rank == 1, news=rank == 0)]
        heard = [team.agree(word) for word in said]
        result: object = [[w.ready, w.exhausted, w.save, w.news, w.leave] for w in heard]
    elif task == "models":
        for model in MODELS:
            torch.save(train_steps(team, model), folder / f"{model}-{rank}.pt")
        result = None
    else:
        even = (range(0, 8), range(8, 16))
        chunks = {"even": even, "saved": even, "uneven": (range(0, 8), range(8, 10))}[task]
        result = stream(team, folder, chunks[rank], save_around=task == "saved")
    (folder / f"{task}-{rank}.json").write_text(json.dumps(result))
    team.close()
    os._exit(0)  # gloo's threads, still there after the group is destroyed, now and then abort a process that ends


if __name__ == "__main__":
    main()
