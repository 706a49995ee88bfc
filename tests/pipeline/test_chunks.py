import errno
import os
import resource
import subprocess

import numpy as np
import pytest

from forebay.pipeline import chunks
from forebay.pipeline.chunks import leftovers, read_chunk, write_all_atomically, write_atomically, write_chunk
from forebay.pipeline.errors import DatasetError

F4 = np.dtype(np.float32)


def test_a_chunk_file_holds_the_bytes_of_the_array_little_endian_in_c_order(tmp_path):
    array = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    write_chunk(tmp_path / "c" / "0", array)
    assert (tmp_path / "c" / "0").read_bytes() == array.astype("<f4").tobytes(order="C")


def test_a_big_endian_array_is_stored_little_endian(tmp_path):
    write_chunk(tmp_path / "0", np.array([1.5, -2.0], dtype=">f8"))
    assert np.array_equal(np.fromfile(tmp_path / "0", "<f8"), [1.5, -2.0])


@pytest.mark.parametrize(("dtype", "fill"), [(np.float32, np.nan), (np.float64, np.nan), (np.int16, 0), (bool, False)])
def test_a_short_block_is_padded_to_the_whole_chunk(tmp_path, dtype, fill):
    array = np.ones((2, 3), dtype=dtype)
    write_chunk(tmp_path / "0", array, rows=5)
    stored = read_chunk(tmp_path / "0", np.dtype(dtype), (5, 3))
    assert np.array_equal(stored[:2], array)
    assert np.array_equal(stored[2:], np.full((3, 3), fill, dtype), equal_nan=np.dtype(dtype).kind == "f")


def test_more_rows_than_the_chunk_holds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="7 rows do not fit the chunk of 4 rows"):
        write_chunk(tmp_path / "0", np.zeros((7, 2), np.float32), rows=4)


def test_writing_again_replaces_the_chunk_and_old_maps_keep_the_old_contents(tmp_path):
    write_chunk(tmp_path / "0", np.full((2, 2), 3, np.float32))
    before = read_chunk(tmp_path / "0", F4, (2, 2))
    write_chunk(tmp_path / "0", np.full((2, 2), 5, np.float32))
    assert (before == 3).all()
    assert (read_chunk(tmp_path / "0", F4, (2, 2)) == 5).all()
    assert os.listdir(tmp_path) == ["0"]


def test_mapped_chunks_cannot_be_written_to(tmp_path):
    write_chunk(tmp_path / "0", np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="read-only"):
        read_chunk(tmp_path / "0", F4, (2, 2))[0, 0] = 1


def test_a_missing_chunk_names_file_and_remedy(tmp_path):
    with pytest.raises(DatasetError, match=r"chunk file .*/17 is missing; `forebay dataset verify`"):
        read_chunk(tmp_path / "17", F4, (2,))


def test_a_truncated_chunk_is_refused_with_both_sizes(tmp_path):
    (tmp_path / "0").write_bytes(b"1234567")
    with pytest.raises(DatasetError, match=r"has 7 bytes where 8 are due .*restore it from a copy"):
        read_chunk(tmp_path / "0", F4, (2,))


def test_every_rename_comes_after_the_file_is_durable_and_before_the_folder_is(tmp_path, monkeypatch):
    steps = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        steps.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def replace(source, target):
        steps.append(("rename", str(source)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_chunk(tmp_path / "17" / "0", np.zeros(3, np.float32))
    (wrote, temporary), (renamed, source), *sealed = steps
    assert (wrote, renamed) == ("fsync", "rename")
    assert temporary == source
    folders = {("fsync", str(tmp_path / "17")), ("fsync", str(tmp_path))}
    assert set(sealed) == folders, "the new folder's name must be durable too"


def test_files_that_belong_together_are_all_durable_before_the_first_is_renamed(tmp_path, monkeypatch):
    steps = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), real_fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("rename"), real_replace(*names)))
    files = [(tmp_path / name / "c" / str(k), [bytes([k])]) for name in "au" for k in range(3)]
    write_all_atomically(files)
    assert steps[:12] == ["fsync"] * 6 + ["rename"] * 6
    assert steps[12:] == ["fsync"] * 5, "a/c, u/c, a, u, and the folder above, once each"
    assert [path.read_bytes() for path, _ in files] == [parts[0] for _, parts in files]


def test_of_files_that_belong_together_those_without_a_name_leave_nothing(tmp_path, monkeypatch):
    real_replace = os.replace

    def denied(source, target):
        if str(target).endswith("1"):
            raise OSError(errno.EACCES, "Permission denied")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(DatasetError, match=r"cannot write .*/1: Permission denied \(7 bytes needed"):
        write_all_atomically([(tmp_path / str(k), [b"x" * (6 + k)]) for k in range(3)])
    assert sorted(os.listdir(tmp_path)) == ["0"]


def test_a_disk_that_fails_in_one_of_several_files_is_told(tmp_path, monkeypatch):
    def failing(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").split(".")[1] == "2":
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(DatasetError, match="Input/output error"):
        write_all_atomically([(tmp_path / str(k), [b"x"]) for k in range(40)])
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_neither_the_file_nor_a_temporary_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DatasetError, match=r"cannot write .*/0: No space left on device \(12 bytes needed, \d+ bytes free"
    ):
        write_chunk(tmp_path / "0", np.zeros(3, np.float32))
    assert os.listdir(tmp_path) == []


def test_a_failed_rewrite_keeps_the_former_file(tmp_path, monkeypatch):
    write_chunk(tmp_path / "0", np.full(3, 7, np.float32))

    def denied(source, target):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(DatasetError, match="choose a folder that can be written"):
        write_chunk(tmp_path / "0", np.zeros(3, np.float32))
    assert (read_chunk(tmp_path / "0", F4, (3,)) == 7).all()
    assert os.listdir(tmp_path) == ["0"]


def test_a_file_beyond_the_size_limit_of_the_process_is_explained(tmp_path):
    # The limit needs no privilege, and Python ignores SIGXFSZ, so this is a real refusal by the kernel half-way.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DatasetError, match=r"File too large \(4000 bytes needed.*raise it \(ulimit -f\)"):
            write_chunk(tmp_path / "0", np.zeros(1000, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_explained(tmp_path):
    (tmp_path / "c").write_text("in the way")
    with pytest.raises(DatasetError, match=r"cannot write .*/c/0: .*check the file system"):
        write_chunk(tmp_path / "c" / "0", np.zeros(3, np.float32))


@pytest.fixture
def tiny_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_explained_and_leaves_no_temporary_file(tiny_disk):
    write_chunk(tiny_disk / "0", np.zeros(100_000, np.float32))
    with pytest.raises(
        DatasetError, match=r"No space left on device \(800000 bytes needed, \d+ bytes free\); free space"
    ):
        write_chunk(tiny_disk / "1", np.zeros(200_000, np.float32))
    assert os.listdir(tiny_disk) == ["0"]
    write_chunk(tiny_disk / "1", np.zeros(100_000, np.float32))


def test_temporary_files_of_killed_writers_are_found_wherever_they_are(tmp_path):
    write_chunk(tmp_path / "u" / "c" / "3" / "0", np.zeros(3, np.float32))
    orphan = tmp_path / "u" / "c" / "4" / ".0.99-ab.tmp"
    orphan.parent.mkdir()
    orphan.write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("somebody else's")
    assert list(leftovers(tmp_path)) == [orphan]


def test_two_processes_never_use_the_same_temporary_name(tmp_path, monkeypatch):
    names = []
    real = os.replace
    monkeypatch.setattr(chunks.os, "replace", lambda source, target: (names.append(source), real(source, target)))
    for _ in range(5):
        write_atomically(tmp_path / "0", [b"x"])
    assert len(set(names)) == 5
    assert all(f".{os.getpid()}-" in str(name) for name in names)
