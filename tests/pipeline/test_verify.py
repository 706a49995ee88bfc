import json
import os
import shutil

import numpy as np
import pytest
from dataset_samples import (
    ATTRIBUTES,
    make_dataset,
    sample_arrays,
    stationary_schema,
    transient_schema,
    without_fsync,
)

from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.verify import Flaw, dataset_info, residual_tolerance, verify

SCHEMA = stationary_schema()
PLAN = ChunkPlan("train", 11, 4)
FAILING = (2, 9)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    with without_fsync():
        return make_dataset(tmp_path_factory.mktemp("pristine") / "d.zarr", SCHEMA, PLAN, failing=FAILING)


@pytest.fixture
def path(pristine, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(pristine, tmp_path / "d.zarr")


def again(sample_id):
    return sample_arrays(SCHEMA, sample_id, sample_id in FAILING)


def change(path, name, chunk, dtype, index, value):
    """Overwrite one item of a chunk file as a disk fault or a wrong program would."""
    file = path / name / "c" / chunk
    items = np.fromfile(file, dtype)
    items[index] = value
    items.tofile(file)


def flaws(report):
    return [finding.flaw for finding in report.findings]


def only_sentence(report, flaw):
    assert flaws(report) == [flaw], report.lines()
    assert report.ok == flaw.is_note
    return report.findings[0].sentence


def test_a_good_data_set_has_no_findings_and_comes_out_the_same_when_solved_again(pristine):
    report = verify(pristine, again, samples=9)
    assert report.findings == ()
    assert report.ok
    assert report.resolved == (0, 1, 3, 4, 5, 6, 7, 8, 10), "only valid samples are solved again"
    assert report.worst == {"a": 0.0, "u": 0.0, "flux": 0.0}
    assert (report.samples, report.chunk_files) == (11, 9)
    assert report.lines()[-1] == f"{pristine}: 11 samples in 9 chunk files: ok"


def test_the_samples_to_solve_again_follow_from_the_seed(pristine):
    chosen = [verify(pristine, again, samples=3, seed=seed).resolved for seed in (7, 7, 11)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(set(c)) == 3 for c in chosen)


def test_the_worst_relative_difference_of_every_field_is_reported(pristine):
    def slightly_off(sample_id):
        fields = again(sample_id)
        return fields | {"u": fields["u"].astype(np.float64) * (1 + 1e-6 * (sample_id + 1)), "a": fields["a"]}

    report = verify(pristine, slightly_off, samples=9, rtol=1e-5)
    # Sample 10 carries the largest factor: ‖u - (1 + δ) u‖ / ‖(1 + δ) u‖ = δ / (1 + δ) with δ = 1.1e-5.
    assert report.worst["u"] == pytest.approx(1.1e-5 / (1 + 1.1e-5), rel=1e-6)
    assert report.worst["a"] == 0.0
    assert only_sentence(report, Flaw.NOT_REPRODUCED) == (
        "sample 10 solved again differs by 1.10e-05 (relative L2) in 'u', above 1e-05"
    )
    assert verify(pristine, slightly_off, samples=9, rtol=1.2e-5).ok


@pytest.mark.parametrize(
    ("fresh", "sentence"),
    [
        (lambda u: {}, r"sample 3 solved again has no such field for 'u' of shape (4, 3)"),
        (lambda u: {"u": u[:2]}, r"sample 3 solved again has shape (2, 3) for 'u' of shape (4, 3)"),
        (
            lambda u: {"u": np.full_like(u, np.nan)},
            "sample 3 solved again differs by inf (relative L2) in 'u', above 1e-05",
        ),
        (lambda u: {"u": np.zeros_like(u)}, "sample 3 solved again differs by inf (relative L2) in 'u', above 1e-05"),
    ],
)
def test_a_sample_that_comes_out_differently_is_reported(pristine, fresh, sentence):
    def resolve(sample_id):
        fields = again(sample_id)
        u = fields.pop("u")
        return fields | (fresh(u) if sample_id == 3 else {"u": u})

    assert only_sentence(verify(pristine, resolve, samples=9), Flaw.NOT_REPRODUCED) == sentence


def test_a_sample_that_cannot_be_solved_again_is_reported_and_the_others_are_still_compared(pristine):
    def resolve(sample_id):
        if sample_id == 5:
            raise ArithmeticError("zero pivot in row 17")
        return again(sample_id)

    report = verify(pristine, resolve, samples=9)
    sentence = only_sentence(report, Flaw.NOT_REPRODUCED)
    assert sentence == "sample 5 could not be solved again: ArithmeticError: zero pivot in row 17"
    assert report.worst.keys() == {"a", "u", "flux"}


def test_a_missing_chunk_is_reported_with_its_file(path):
    (path / "u/c/1/0/0").unlink()
    report = verify(path)
    assert only_sentence(report, Flaw.MISSING_CHUNK).startswith("chunk file ")
    assert report.findings[0].where == "u/c/1/0/0"
    assert report.chunk_files == 8


def test_a_truncated_chunk_is_reported_with_both_sizes(path):
    os.truncate(path / "a/c/2/0/0", 100)
    assert "has 100 bytes where 192 are due" in only_sentence(verify(path), Flaw.WRONG_SIZE)


def test_values_that_are_not_finite_in_a_valid_sample_are_reported(path):
    change(path, "u", "1/0/0", "<f4", 12, np.inf)  # item 12 of block 1 is the first of sample 5
    assert only_sentence(verify(path), Flaw.NONFINITE) == "samples 5 are valid but hold NaN or inf in field 'u'"


def test_values_in_a_failed_sample_are_reported(path):
    change(path, "flux", "2", "<f4", 1, 3.0)
    assert only_sentence(verify(path), Flaw.UNMASKED).startswith(
        "samples 9 are not valid but hold values in field 'flux'"
    )


def test_a_residual_above_the_stated_tolerance_is_reported(path):
    change(path, "residual", "0", "<f8", [1, 4], [2e-8, 3e-8])
    sentence = only_sentence(verify(path), Flaw.RESIDUAL)
    assert sentence == "samples 1, 4 are valid with residuals up to 3.00e-08, above the tolerance of 1e-08"


@pytest.mark.parametrize(
    ("name", "dtype", "row", "value", "sentence"),
    [
        ("sample_id", "<i8", 6, 5, "samples 6 have an id that is not their row"),
        ("outcome", "i1", 9, 77, "samples 9 have no outcome although they are published"),
        ("valid", "?", 2, True, "samples 2 are marked valid against their outcome"),
        ("method", "<i2", 4, 9, "samples 4 have a method code without meaning"),
        ("seed", "<u8", 3, 2**63 + 77, "samples 3, 7 share a seed: they are the same draw"),
        ("residual", "<f8", 4, np.nan, "samples 4 are valid without a finite residual"),
        ("parameters", "<f8", 8, np.inf, "samples 4 are valid with parameters that are not finite"),
    ],
)
def test_records_that_make_no_sense_are_reported(path, name, dtype, row, value, sentence):
    change(path, name, "0/0" if name == "parameters" else "0", dtype, row, value)
    found = [f.sentence for f in verify(path).findings if f.flaw is Flaw.RECORD]
    assert found == [sentence]


def test_missing_records_are_reported_once_and_what_depends_on_them_is_said_to_be_unchecked(path):
    (path / "valid/c/0").unlink()
    report = verify(path, again)
    assert flaws(report) == [Flaw.MISSING_CHUNK, Flaw.UNCHECKED]
    assert report.findings[0].sentence.startswith("record array 'valid': chunk file ")
    assert report.resolved == ()
    assert not report.ok


def test_metadata_that_contradict_the_group_are_reported(path):
    for name, key, value in [("u", "data_type", "float64"), ("a", "shape", [3, 4, 3]), ("flux", "codecs", [])]:
        document = path / name / "zarr.json"
        document.write_text(json.dumps(json.loads(document.read_text()) | {key: value}))
    (path / "x" / "zarr.json").unlink()
    report = verify(path)
    assert set(flaws(report)) == {Flaw.METADATA}
    assert [f.where for f in report.findings] == ["a", "flux", "u", "x"]
    assert report.findings[2].sentence == "array 'u' says data_type float64, the group's metadata float32"


def test_an_array_ahead_of_the_group_is_what_a_crash_leaves_and_no_finding(path):
    document = path / "u" / "zarr.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"shape": [12, 4, 3]}))
    assert verify(path).findings == ()


def test_a_field_shorter_than_the_sample_ids_is_reported(path):
    root = json.loads((path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["u"]["shape"][0] = 8
    (path / "zarr.json").write_text(json.dumps(root))
    report = verify(path)
    assert report.findings[0].sentence == (
        "field 'u' has shape [8, 4, 3] where schema and sample ids ask for [11, 4, 3]"
    )
    assert not report.ok


def test_lost_coordinates_are_reported(tmp_path):
    with without_fsync():
        path = make_dataset(tmp_path / "d.zarr", transient_schema(), PLAN)
    (path / "time/c/0").unlink()
    assert only_sentence(verify(path), Flaw.MISSING_CHUNK).startswith("coordinate 'time' has no chunk file of 24 bytes")
    (path / "node_x/c/0").unlink()
    assert only_sentence(verify(path), Flaw.METADATA).startswith("cannot be opened: chunk file ")


def test_all_that_is_wrong_is_reported_at_once(path):
    (path / "u/c/0/0/0").unlink()
    os.truncate(path / "a/c/0/0/0", 4)
    change(path, "a", "1/0/0", "<f4", 0, np.nan)
    change(path, "residual", "0", "<f8", 6, 1.0)
    change(path, "seed", "0", "<u8", 3, 5)
    report = verify(path, lambda i: again(i) | {"flux": np.float32(99)}, samples=1)
    assert set(flaws(report)) >= {
        Flaw.MISSING_CHUNK,
        Flaw.WRONG_SIZE,
        Flaw.NONFINITE,
        Flaw.RESIDUAL,
        Flaw.NOT_REPRODUCED,
    }
    assert report.lines()[-1].endswith(f"{sum(not f.flaw.is_note for f in report.findings)} findings")
    assert all(line.startswith("WRONG: ") for line in report.lines()[:4])


def test_an_unfinished_data_set_is_fine_but_noted(tmp_path):
    with without_fsync():
        path = make_dataset(tmp_path / "d.zarr", SCHEMA, PLAN, chunks=[0])
    (path / "u/c/.1.99-ab.tmp").write_bytes(b"half")
    report = verify(path, lambda i: sample_arrays(SCHEMA, i))
    assert flaws(report) == [Flaw.INCOMPLETE, Flaw.LEFTOVER]
    assert report.ok
    assert report.findings[0].sentence.startswith("4 of 11 planned samples are published")
    assert report.findings[1].sentence.startswith("1 unfinished files")


def test_many_samples_are_listed_by_the_first_five(path):
    change(path, "residual", "0", "<f8", slice(3, 11), 1.0)
    assert only_sentence(verify(path), Flaw.RESIDUAL).startswith("samples 3, 4, 5, 6, 7 and 2 more are valid")


@pytest.mark.parametrize(
    ("attributes", "tolerance"),
    [
        ({"residual_tolerance": 1e-6, "study": {"solver": {"rtol": 1e-8}}}, 1e-6),
        ({"study": {"solver": {"rtol": 1e-8}}}, 1e-8),
        ({"study": {"solver": {}}}, None),
        ({"study": "in words"}, None),
        ({}, None),
    ],
)
def test_the_tolerance_is_the_stated_one_or_that_of_the_study(attributes, tolerance):
    assert residual_tolerance(attributes) == tolerance


def test_without_a_stated_tolerance_residuals_are_noted_as_unchecked(tmp_path):
    with without_fsync():
        path = make_dataset(tmp_path / "d.zarr", SCHEMA, PLAN, attributes={"study": {}})
    assert "neither residual_tolerance nor study.solver.rtol" in only_sentence(verify(path), Flaw.UNCHECKED)


def test_a_path_without_a_data_set_raises(tmp_path):
    for look in (verify, dataset_info):
        with pytest.raises(DatasetError, match="no data set at"):
            look(tmp_path)


def test_the_attributes_of_the_samples_state_a_tolerance():
    assert residual_tolerance(ATTRIBUTES) == 1e-8
