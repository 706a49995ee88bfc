"""A data set from a stranger: nothing of it is executed, nothing outside of it is read, and no memory is filled."""

import ast
import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from dataset_samples import make_dataset, stationary_schema, transient_schema, without_fsync

import forebay
from forebay.learners.stream import StreamDataset
from forebay.pipeline import dataset_trust
from forebay.pipeline.chunks import check_inside
from forebay.pipeline.dataset import DatasetReader
from forebay.pipeline.dataset_card import write_card
from forebay.pipeline.dataset_export import ExportOptions, export
from forebay.pipeline.dataset_info import dataset_info
from forebay.pipeline.dataset_stats import dataset_stats
from forebay.pipeline.dataset_trust import LARGEST_DOCUMENT, check_links, memory_bytes, printable
from forebay.pipeline.errors import DatasetError, RunError
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.study import study_from_dict
from forebay.pipeline.study_trust import foreign_code, stored_study
from forebay.pipeline.verify import verify

PLAN = ChunkPlan("train", 11, 4)
SOURCES = Path(forebay.__file__).parent


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with without_fsync():
        make_dataset(folder / "d.zarr", stationary_schema(), PLAN)
        make_dataset(folder / "t.zarr", transient_schema(), PLAN)
        export(folder / "d.zarr", folder / "packed", ExportOptions("repacked", compression="zstd"))
    return folder


@pytest.fixture
def path(made, tmp_path):
    return Path(shutil.copytree(made / "d.zarr", tmp_path / "d.zarr"))


@pytest.fixture
def packed(made, tmp_path):
    return Path(shutil.copytree(made / "packed/dataset.zarr", tmp_path / "dataset.zarr"))


def consume(path, tmp_path):
    """Every way of ours to read a data set; each must raise the same kind of error."""
    return {
        "reader": lambda: DatasetReader(path).read_block(0),
        "info": lambda: dataset_info(path),
        "card": lambda: write_card(path),
        "stats": lambda: dataset_stats(path),
        "export": lambda: export(path, tmp_path / "out", ExportOptions("repacked")),
        "stream": lambda: list(StreamDataset(path, batch_size=4)),
    }


def edit(path, change, *, own=""):
    """Apply `change` to the group's document, or to an array's own."""
    file = path / own / "zarr.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def arrays(document):
    return document["consolidated_metadata"]["metadata"]


def in_array(name, *keys, value):
    def change(document):
        node = arrays(document)[name]
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def in_ours(*keys, value):
    def change(document):
        node = document["attributes"]["forebay"]
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def rename_array(document):
    arrays(document)["../../secret"] = arrays(document).pop("u")


SHARDING = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [1, 4, 3], "codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]},
}
HUGE = 2**47

DANGEROUS = {
    "an array outside": (rename_array, r"array called '../../secret'; names are letters, digits and underscores"),
    "a field outside": (
        in_ours("schema", "outputs", 0, "name", value="../u"),
        r"array name '../u' must be letters",
    ),
    "a coordinate outside": (
        in_ours("schema", "coordinates", 0, "name", value="/etc/passwd"),
        r"is not what Forebay writes \(KeyError: '/etc/passwd'\)",
    ),
    "objects": (
        in_array("u", "data_type", value="object"),
        "array 'u' of .* has the type 'object'; only these are read",
    ),
    "structured objects": (
        in_array("u", "data_type", value={"name": "struct", "configuration": {"fields": [["x", "object"]]}}),
        "array 'u' of .* has the type {'name': 'struct'",
    ),
    "strings": (in_array("outcome", "data_type", value="string"), "array 'outcome' .* has the type 'string'"),
    "a codec of an extension": (
        in_array("u", "codecs", value=[{"name": "bytes"}, {"name": "numcodecs.pickle"}]),
        "array 'u' of .* has the codec 'numcodecs.pickle'; only these are read: .*zstd",
    ),
    "such a codec in a shard": (in_array("u", "codecs", value=[SHARDING]), "has the codec 'numcodecs.pickle'"),
    "more samples than memory": (
        lambda d: (in_array("sample_id", "shape", value=[HUGE])(d), in_ours("samples", value=HUGE)(d)),
        rf"the records of {HUGE} samples would need \d+ bytes of memory, above {memory_bytes() // 4}, a 4th",
    ),
    "more samples than planned": (in_array("sample_id", "shape", value=[12]), "shows 12 samples of 11 planned"),
    "a chunk larger than memory": (
        in_array("u", "chunk_grid", "configuration", "chunk_shape", value=[HUGE, 4, 3]),
        r"a chunk of array 'u', shape \[140737488355328, 4, 3\], would need",
    ),
    "a chunk of nothing": (
        in_array("u", "chunk_grid", "configuration", "chunk_shape", value=[0, 4, 3]),
        r"array 'u' of .* has shape \[11, 4, 3\], chunks \[0, 4, 3\]",
    ),
    "a length that is no number": (in_array("u", "shape", value=[11, "4", 3]), "must be lists of one length"),
    "a length beyond 64 bits": (in_array("u", "shape", value=[2**80, 4, 3]), "must be lists of one length"),
    "a negative length": (in_array("u", "shape", value=[-1, 4, 3]), "must be lists of one length"),
    "Zarr v2": (in_array("u", "zarr_format", value=2), "must be lists of one length"),
    "a field of another type": (
        in_array("u", "data_type", value="float64"),
        r"array 'u' of .* is float64 of shape \[11, 4, 3\], its schema asks for float32",
    ),
    "records of another type": (in_array("outcome", "data_type", value="float64"), "its schema asks for int8"),
    "an array that is missing": (lambda d: arrays(d).pop("valid"), r"is not what Forebay writes \(KeyError: 'valid'\)"),
    "metadata that are missing": (lambda d: arrays(d)["u"].pop("codecs"), "metadata that no Zarr v3 array has"),
    "no arrays": (lambda d: d["consolidated_metadata"].update(metadata=[]), "lists no arrays"),
    "samples that are no number": (in_ours("samples", value="many"), "is not what Forebay writes"),
    "a schema that is none": (in_ours("schema", value=["darcy"]), "is not what Forebay writes .TypeError"),
    "a range of NaN": (in_ours("schema", "parameters", 0, "low", value=float("nan")), "is not what Forebay writes"),
    "attributes that are none": (lambda d: d.update(attributes=7), "without Forebay's attributes"),
}


@pytest.mark.parametrize("what", DANGEROUS)
def test_no_reader_accepts_metadata_that_it_could_not_trust(path, tmp_path, what):
    change, message = DANGEROUS[what]
    edit(path, change)
    for name, use in consume(path, tmp_path).items():
        with pytest.raises(DatasetError, match=message):
            pytest.fail(f"{name} gave {use()}")
    if "without" not in message and "lists" not in message:
        with contextlib.suppress(DatasetError):
            assert not verify(path).ok
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.zarr"]


def test_steps_times_samples_count_too(made, tmp_path):
    path = Path(shutil.copytree(made / "t.zarr", tmp_path / "d.zarr"))
    samples = memory_bytes() // 4 // 70  # whose records alone would fit
    steps = 100

    def change(document):
        in_array("sample_id", "shape", value=[samples])(document)
        in_ours("samples", value=samples)(document)
        in_ours("schema", "times", value=[float(k) for k in range(steps)])(document)
        in_array("temperature", "shape", value=[samples, steps, 5])(document)
        in_array("temperature", "chunk_grid", "configuration", "chunk_shape", value=[4, steps, 5])(document)

    edit(path, change)
    with pytest.raises(DatasetError, match="the keys of all frames would need"):
        DatasetReader(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not JSON"),
        ("7", "without Forebay's attributes"),
        ("{", "is not JSON"),
        ("\udcff", "not JSON"),
    ],
)
def test_documents_that_break_a_parser_are_refused(path, text, message):
    (path / "zarr.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError, match=message):
        DatasetReader(path)


def test_a_document_that_fills_memory_or_waits_for_ever_is_not_read(path):
    os.truncate(path / "zarr.json", LARGEST_DOCUMENT + 1)
    with pytest.raises(DatasetError, match=r"zarr.json is no metadata document: it has 67108865 bytes"):
        DatasetReader(path)
    (path / "zarr.json").unlink()
    os.mkfifo(path / "zarr.json")
    with pytest.raises(DatasetError, match="is no metadata document"):
        DatasetReader(path)


# -- links -------------------------------------------------------------------------------------------------------------


def replaced_by_link(file, outside):
    """Move a file or folder out of the data set and leave a link to it."""
    shutil.move(file, outside)
    file.symlink_to(outside)


@pytest.mark.parametrize("inner", ["u/c/1/0/0", "u/c/1", "u/c", "u", "valid/c/0"])
def test_links_that_lead_out_of_the_folder_are_not_followed(path, tmp_path, inner):
    replaced_by_link(path / inner, tmp_path / "secret")
    for name, use in consume(path, tmp_path).items():
        if name in ("info", "card") and inner.startswith("u"):
            continue  # they read the records alone
        with pytest.raises(DatasetError, match=r"is a link to .*secret.*, outside of the data set; put a copy"):
            pytest.fail(f"{name} gave {DatasetReader(path).read_block(1) if name == 'reader' else use()}")
    report = verify(path)
    assert any("outside of the data set" in finding.sentence for finding in report.findings)
    assert not report.ok


def test_a_coordinate_behind_a_link_is_not_read_either(path, tmp_path):
    replaced_by_link(path / "x/c/0", tmp_path / "secret")
    with pytest.raises(DatasetError, match="outside of the data set"):
        DatasetReader(path)


@pytest.mark.parametrize("inner", ["u/c/0/0/0", "u/c", "u"])
def test_links_in_a_repacked_copy_are_not_followed_by_the_library(packed, tmp_path, inner):
    replaced_by_link(packed / inner, tmp_path / "secret")
    with pytest.raises(DatasetError, match="outside of the data set"):
        DatasetReader(packed).read("u", [0])


def test_links_within_the_folder_and_to_the_folder_are_fine(path, packed, tmp_path):
    for group in (path, packed):
        whole = DatasetReader(group).column("u")
        file = group / "u/c/0/0/0"
        replaced_by_link(file, group / "u/c/0/0/elsewhere")
        (tmp_path / "link").symlink_to(group)
        assert np.array_equal(DatasetReader(tmp_path / "link").column("u"), whole)
        (tmp_path / "link").unlink()


def test_a_name_that_begins_like_the_folders_is_still_outside(tmp_path):
    (tmp_path / "d.zarr").mkdir()
    (tmp_path / "d.zarr-old").write_text("x")
    (tmp_path / "d.zarr" / "link").symlink_to(tmp_path / "d.zarr-old")
    with pytest.raises(DatasetError, match="outside"):
        check_inside(tmp_path / "d.zarr", tmp_path / "d.zarr" / "link")
    with pytest.raises(DatasetError, match="outside"):
        check_links(tmp_path / "d.zarr", tmp_path / "d.zarr")


# -- arrays that go through the library --------------------------------------------------------------------------------


def test_an_arrays_own_document_is_held_to_the_same_rules(packed):
    edit(packed, lambda d: d.update(codecs=[{"name": "bytes"}, {"name": "numcodecs.pickle"}]), own="u")
    with pytest.raises(DatasetError, match=r"has the codec 'numcodecs.pickle'"):
        DatasetReader(packed).read("u", [0])


def test_an_array_of_zarr_v2_in_the_folder_is_not_opened(packed):
    (packed / "u/zarr.json").unlink()
    zarr.create_array(str(packed / "u"), shape=(11, 4, 3), chunks=(4, 4, 3), dtype="f4", zarr_format=2, overwrite=True)
    with pytest.raises((DatasetError, FileNotFoundError), match=r"u/zarr\.json"):
        DatasetReader(packed).read("u", [0])


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_loses_what_a_terminal_would_obey():
    assert printable("K\x1b]0;title\x07 ‖u‖₂\nm") == "K\ufffd]0;title\ufffd ‖u‖₂\nm"


def test_the_study_in_the_attributes_names_code_that_is_never_run(path, tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: pass\n")
    study = {"problem": {"name": f"{trap}:Trap"}, "study_folder": str(tmp_path), "__reduce__": "os.system"}
    edit(path, lambda d: d["attributes"].update(study=study, problem_summary="{{ 7 * 7 }} <script>"))
    for use in consume(path, tmp_path).values():
        use()
    assert verify(path).ok
    assert not (tmp_path / "sprung").exists()


# -- studies -----------------------------------------------------------------------------------------------------------


def study(**solver):
    return study_from_dict({"name": "s", "problem": {"name": "darcy"}, "samples": 8, "solver": solver}, source="test")


def test_pure_data_needs_no_trust():
    assert foreign_code(study()) == ()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"problem": {"name": "my_problem.py:Heat"}}, "problem.name = 'my_problem.py:Heat', which is a file"),
        (
            {"problem": {"name": "darcy"}, "solver": {"method": "cg", "options": {"ksp_view": "ascii:/tmp/x"}}},
            "solver.options = {'ksp_view': 'ascii:/tmp/x'}, which go to PETSc",
        ),
        (
            {
                "problem": {"name": "darcy"},
                "solver": {"method": "auto", "arms": [{"method": "cg", "options": {"pc_type": "python"}}]},
            },
            "options = {'pc_type': 'python'} of an arm",
        ),
    ],
)
def test_what_could_run_code_is_named(tree, words):
    found = foreign_code(study_from_dict({"name": "s", "samples": 8} | tree, source="test"))
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no run folder: it has no study.json"),
        ("[]", "holds no study"),
        ('{"study": 7, "study_folder": "/", "source": "s.toml"}', "holds no study"),
        ('{"study": {}, "study_folder": 7, "source": "s.toml"}', "holds no study"),
    ],
)
def test_a_folder_without_a_readable_study_is_told(tmp_path, text, message):
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    with pytest.raises(RunError, match=message):
        stored_study(tmp_path)


# -- our own sources ---------------------------------------------------------------------------------------------------


def calls(tree):
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            yield f"{node.func.value.id}.{node.func.attr}", node


def test_no_file_is_ever_unpickled_by_our_code():
    files = [file for folder in SOURCES.iterdir() if folder.is_dir() for file in folder.rglob("*.py")]
    loads = 0
    for file in files:
        for name, node in calls(ast.parse(file.read_text())):
            allowed = {k.arg: getattr(k.value, "value", None) for k in node.keywords}.get("allow_pickle")
            assert name not in ("pickle.load", "torch.load", "torch.save", "joblib.load", "pickle.dump"), file
            assert allowed in (None, False), f"{file}: {name} with allow_pickle={allowed}"
            loads += name == "np.load"
    assert len(files) > 200
    assert loads >= 5


def test_the_memory_that_counts_is_what_this_process_is_limited_to(monkeypatch):
    machine = dataset_trust.memory_bytes()
    monkeypatch.setattr(dataset_trust.resource, "getrlimit", lambda which: (2**20, 2**21))
    assert dataset_trust.memory_bytes() == 2**20
    monkeypatch.setattr(dataset_trust.resource, "getrlimit", lambda which: (machine * 3, machine * 3))
    assert dataset_trust.memory_bytes() == machine


@pytest.mark.parametrize("key", ["codecs", "index_codecs"])
def test_a_codec_within_a_shard_is_one_of_the_specification_too(key):
    inner = {"codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
    array = {
        "node_type": "array",
        "zarr_format": 3,
        "shape": [8],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
        "data_type": "float32",
        "dimension_names": ["sample"],
        "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [2], **inner}}],
    }
    dataset_trust.check_array(Path("d.zarr"), "u", array)
    inner[key] = [*inner[key], {"name": "numcodecs.pickle"}]
    array["codecs"][0]["configuration"] |= inner
    with pytest.raises(DatasetError, match=r"array 'u' of d\.zarr has the codec 'numcodecs\.pickle'; only these"):
        dataset_trust.check_array(Path("d.zarr"), "u", array)
