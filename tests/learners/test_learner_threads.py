"""Blocks arrive on one thread while another one trains."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from forebay.learners.learner import StreamLearner
from forebay.pipeline.plan import make_plan
from forebay.pipeline.records import Block, Field, Outcome, Parameter, Schema, SolveRecord
from forebay.pipeline.study import study_from_dict

BLOCK = 8
SCHEMA = Schema((Parameter("height", 0.0, 1.0),), (), (Field("u", ("y", "x"), (4, 4)),))
STUDY = study_from_dict(
    {
        "name": "threads",
        "samples": 64,
        "problem": {"name": "any.py:Any"},
        "buffer": {"threshold": 4},
        "learner": {"model": {"name": "mlp", "hidden": [8]}, "batch_size": 4, "batches": 12},
        "dataset": {"block_samples": BLOCK},
    }
)


def block(chunk: int) -> Block:
    """Later blocks hold larger values, so that the normaliser moves with each."""
    ids = np.arange(chunk * BLOCK, (chunk + 1) * BLOCK)
    rng = np.random.default_rng(317 + chunk)
    fields = (chunk + 1) * rng.random((BLOCK, 4, 4), np.float32)
    records = [SolveRecord(int(i), 7, Outcome.CONVERGED, "none", 0, 0.0, 0.0) for i in ids]
    return Block("train", chunk, ids, {"parameters": rng.random((BLOCK, 1)), "u": fields}, records)


@pytest.fixture
def learner(tmp_path):
    made = StreamLearner.open(
        SCHEMA,
        STUDY.learner,
        make_plan(STUDY, SCHEMA, cores=1),
        policy="reservoir",
        validate_every=1000,
        seed=331,
        folder=tmp_path,
        clock_zero=time.time(),
        keep_checkpoints=1,
        load=lambda key: block(key[1]),
        resume=False,
    )
    yield made
    made.metrics.close()


def test_a_block_that_arrives_within_a_step_leaves_the_step_its_normalisation(learner):
    learner.ingest(block(0))
    loss = learner.state.loss
    scales = []

    def loss_while_a_block_arrives(prediction, target, scale):
        value = loss(prediction, target, scale)
        learner.ingest(block(1 + len(scales)))
        scales.append(float(scale))
        return value

    learner.state = replace(learner.state, loss=loss_while_a_block_arrives)
    assert learner.advance(3) == 3, "the gradient of every step is the one of its forward pass"
    assert scales == sorted(scales), "what arrived in a step counts from the next one on"
    assert len(set(scales)) == 3


def test_a_checkpoint_between_steps_knows_every_block_that_has_arrived(learner):
    learner.ingest(block(0))
    learner.advance(1)
    learner.ingest(block(1))
    learner.checkpoint()
    both = np.stack([block(0).arrays["u"], block(1).arrays["u"]])
    assert float(learner.state.surrogate.normaliser.output_scale("u")) == pytest.approx(float(both.std()))
