"""Arrays in nameless memory: every type that can pass, the ones that cannot, and what happens when there is no room."""

from __future__ import annotations

import errno
import os
import tempfile

import numpy as np
import pytest
from mpi_traces import open_files

from forebay.cluster import mpi_arrays
from forebay.cluster.mpi_arrays import ALIGNMENT, load, pack, view
from forebay.cluster.mpi_errors import MpiError

RECORD = np.dtype([("node", ">i4"), ("value", "f8"), ("pair", "i2", (2,))])
ARRAYS = {
    "record": np.array([(7, 2.5, (1, 2)), (11, -0.0, (3, 4))], RECORD),
    "padded record": np.zeros(3, np.dtype("i1,f8", align=True)),
    "text": np.array(["Ω", "boundary"]),
    "bytes": np.array([b"a", b"bcd"]),
    "date": np.array(["2026-11-21", "NaT"], "M8[D]"),
    "complex": np.array([1 + 2j, np.nan]),
    "big endian": np.arange(5, dtype=">f4"),
    "broadcast": np.broadcast_to(np.float64(7), (3, 4)),
    "reversed": np.arange(24.0).reshape(2, 3, 4)[::-1, :, ::2],
    "transposed": np.arange(6).reshape(2, 3).T,
    "zero-dimensional": np.array(13, np.int16),
    "empty": np.zeros((4, 0, 2)),
    "list": [1, 2, 3],
}


def round_trip(arrays, take=view):
    with pack(arrays) as packed:
        copy = os.dup(packed.descriptor) if packed.descriptor is not None else None
        return take(copy, packed.layout)


@pytest.mark.parametrize("take", [view, load])
def test_every_type_and_layout_passes_bit_by_bit(take):
    back = round_trip(ARRAYS, take)
    assert list(back) == list(ARRAYS)
    for name, value in ARRAYS.items():
        array = np.asarray(value)
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape), name
        assert back[name].tobytes() == array.tobytes(), name


def test_viewed_arrays_are_aligned_and_read_only_and_loaded_ones_are_the_callers_own():
    back = round_trip({"odd": np.zeros(3, np.uint8), "x": np.ones(4)})
    assert back["x"].ctypes.data % ALIGNMENT == 0
    with pytest.raises(ValueError, match="read-only"):
        back["x"][0] = 2.0
    mine = round_trip({"x": np.ones(4)}, load)["x"]
    mine += 1
    assert mine.tolist() == [2.0] * 4


def test_an_array_that_was_cut_short_is_told():
    with pack({"x": np.ones(4)}) as packed:
        os.ftruncate(packed.descriptor, 24)
        with pytest.raises(MpiError, match="8 bytes of an array are missing"):
            load(os.dup(packed.descriptor), packed.layout)


def test_nothing_at_all_needs_no_memory():
    with pack({"none": np.zeros(0)}) as packed:
        assert packed.descriptor is None
    assert round_trip({}) == round_trip({}, load) == {}


@pytest.mark.parametrize("bad", [np.array([None]), np.array([{}, 1]), np.array(["a"], np.dtypes.StringDType())])
def test_what_lives_in_one_process_only_is_refused(bad):
    with pytest.raises(
        ValueError, match=r"array 'bad' has dtype .*, which cannot pass to another process; use numbers"
    ):
        pack({"fine": np.ones(2), "bad": bad})


def test_a_type_that_numpy_does_not_know_is_refused():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(ValueError, match="dtype bfloat16, which cannot pass"):
        pack({"half": np.zeros(3, ml_dtypes.bfloat16)})


@pytest.mark.parametrize("take", [view, load])
def test_descriptors_are_closed(take):
    before = open_files()
    kept = round_trip(ARRAYS, take)
    assert take is view or open_files() == before
    del kept
    with pytest.raises(ValueError, match="cannot pass"):
        pack({"x": np.ones(3), "bad": np.array([None])})
    assert open_files() == before


def test_arrays_beyond_free_memory_go_to_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mpi_arrays, "_free_memory_bytes", lambda: 100)
    monkeypatch.setattr(os, "memfd_create", None)
    x = np.random.default_rng(7).standard_normal(1000)
    assert np.array_equal(round_trip({"x": x})["x"], x)
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_fit_nowhere_are_told_with_both_sizes(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = open_files()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MpiError, match=r"arrays of 2.0 MiB fit neither into free memory \(.* MiB\) nor into .*TMPDIR"):
        pack({"x": np.zeros(2**18)})
    assert open_files() == before


def test_another_fault_while_writing_is_passed_on(monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="Input/output error"):
        pack({"x": np.zeros(3)})
