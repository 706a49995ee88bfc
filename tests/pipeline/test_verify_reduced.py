"""Verification of samples that a reduced model made: compared with full ones, by the tolerance of their estimates."""

import dataclasses

import numpy as np
import pytest
from dataset_samples import ATTRIBUTES, make_block, sample_arrays, stationary_schema, without_fsync

from forebay.pipeline.dataset import DatasetCoordinator, DatasetWriter
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.verify import Flaw, verify

SCHEMA = stationary_schema()
PLAN = ChunkPlan("train", 11, 4)
REDUCED = {**ATTRIBUTES, "study": {"name": "trial", "solver": {"rtol": 1e-8, "rom": {"tolerance": 0.02}}}}


def only_sentence(report):
    assert [finding.flaw for finding in report.findings] == [Flaw.NOT_REPRODUCED], report.lines()
    return report.findings[0].sentence


def reduced_dataset(path, *, methods=("full", "rom"), attributes=REDUCED):
    """Samples of two methods in turn, stored as `again` has them."""
    with without_fsync(), DatasetCoordinator.create(path, SCHEMA, PLAN, attributes) as coordinator:
        writer = DatasetWriter(path, SCHEMA, PLAN)
        for chunk in range(PLAN.chunks):
            block = make_block(SCHEMA, PLAN, chunk)
            records = [dataclasses.replace(r, method=methods[r.sample_id % 2]) for r in block.records]
            writer.store(block)
            coordinator.commit(chunk, records, block.arrays["parameters"])
    return path


def off_by(relative, *, of=range(11), names=("u",)):
    """Solve again with these samples' fields off by that."""

    def resolve(sample_id):
        fields = sample_arrays(SCHEMA, sample_id)
        return {k: v / (1 + relative) if sample_id in of and k in names else v for k, v in fields.items()}

    return resolve


@pytest.mark.parametrize("method", ["rom", "rom+full"])
def test_reduced_samples_may_differ_by_three_times_the_tolerance_of_their_estimates(tmp_path, method):
    path = reduced_dataset(tmp_path / "d.zarr", methods=("full", method))
    odd = range(1, 11, 2)
    report = verify(path, off_by(0.059, of=odd), samples=11)
    assert report.ok
    assert report.worst["u"] == pytest.approx(0.059, rel=1e-4)
    sentences = [finding.sentence for finding in verify(path, off_by(0.061, of=odd), samples=11).findings]
    assert sentences == [f"sample {k} solved again differs by 6.10e-02 (relative L2) in 'u', above 0.06" for k in odd]


def test_full_samples_beside_reduced_ones_are_compared_as_ever(tmp_path):
    path = reduced_dataset(tmp_path / "d.zarr")
    report = verify(path, off_by(2e-5, of=(3, 4)), samples=11)
    assert only_sentence(report).startswith("sample 4 solved again differs by 2.00e-05")


@pytest.mark.parametrize(
    ("methods", "attributes"), [(("full", "rom:3"), REDUCED), (("full", "cg"), REDUCED), (("full", "rom"), ATTRIBUTES)]
)
def test_without_reduced_samples_or_a_stated_tolerance_every_bound_is_rtol(tmp_path, methods, attributes):
    path = reduced_dataset(tmp_path / "d.zarr", methods=methods, attributes=attributes)
    assert only_sentence(verify(path, off_by(2e-5, of=(3,)), samples=11)).endswith("above 1e-05")


def test_a_reduced_sample_that_nearly_vanishes_is_judged_by_the_scale_of_the_others(tmp_path):
    path = reduced_dataset(tmp_path / "d.zarr")
    _scale(path, "u", sample=3, factor=1e-6)
    _scale(path, "u", sample=4, factor=1e-6)

    def nothing(sample_id):
        fields = sample_arrays(SCHEMA, sample_id)
        return fields | ({"u": np.zeros_like(fields["u"])} if sample_id in (3, 4) else {})

    report = verify(path, nothing, samples=11)
    sentence = only_sentence(report)
    assert sentence == "sample 4 solved again differs by inf (relative L2) in 'u', above 1e-05"


def _scale(path, name, *, sample, factor):
    chunk, row = divmod(sample, PLAN.size)
    file = path / name / "c" / f"{chunk}/0/0"
    values = np.fromfile(file, np.float32).reshape(PLAN.size, *SCHEMA.sample_shape(name))
    values[row] *= factor
    values.tofile(file)
