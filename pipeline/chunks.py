"""Raw chunk files of Zarr v3 arrays that are neither compressed nor sharded: a chunk is a file, little endian, C order.

A chunk file appears under its name complete and durable or not at all: temporary name in the same folder, write, fsync
of the file, rename, fsync of the folder.  Files that belong together take each of these steps at the same time, since
a disk that is asked to flush several times at once flushes once: blocks are written in half the time.  Nothing here
knows about Zarr; numpy and os are enough, so that any process can write chunks without loading a storage library.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from forebay.pipeline.errors import DatasetError

TEMPORARY_SUFFIX = ".tmp"
"""Ends the name of a file that is still being written; its name also starts with a dot."""

AT_ONCE = 16
"""Threads that wait for the disk at a time."""

_REMEDIES = {
    errno.ENOSPC: "free space there, or move the run folder to a larger disk, then resume",
    errno.EDQUOT: "the quota is used up: free space or have it raised, then resume",
    errno.EFBIG: "the file-size limit of this process is too low: raise it (ulimit -f) or use smaller chunks",
    errno.EROFS: "the file system is read-only: choose a folder that can be written",
    errno.EACCES: "permission denied: choose a folder that can be written",
    errno.ENOENT: "the folder is missing: create the data set before writing into it",
}


def write_chunk(path: Path, array: np.ndarray, *, rows: int | None = None) -> None:
    """Write one chunk file, padded along the first axis to `rows` rows (NaN for floats, 0 for integers).

    `array` has shape (k, ...) with k <= rows; the file then holds `rows * prod(shape[1:])` items.  Writing the same
    chunk again replaces it atomically; readers that have the old file mapped keep the old contents.

    Raises:
        DatasetError: the operating system refuses (full disk, quota, permissions); no temporary file stays behind.
        ValueError: more rows than the chunk holds.
    """
    write_atomically(path, chunk_parts(array, rows=rows, path=path))


def chunk_parts(array: np.ndarray, *, path: Path, rows: int | None = None) -> list[memoryview]:
    """The contents of a chunk file as `write_chunk` writes it; `path` is for the error alone.

    Raises:
        ValueError: as `write_chunk`.
    """
    padding = 0 if rows is None else rows - len(array)
    if padding < 0:
        raise ValueError(f"{len(array)} rows do not fit the chunk of {rows} rows that {path} is")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    parts = [little.reshape(-1).view(np.uint8)]
    if padding:
        fill = np.nan if little.dtype.kind == "f" else 0
        parts.append(np.full((padding, *little.shape[1:]), fill, little.dtype).reshape(-1).view(np.uint8))
    return [part.data for part in parts]


def read_chunk(path: Path, dtype: np.dtype, shape: tuple[int, ...], *, within: Path | None = None) -> np.ndarray:
    """Map one chunk file into memory, read-only; nothing is read before it is touched.

    `within` is the folder that no link may lead out of.

    Raises:
        DatasetError: the file is missing, its size is not the one that `dtype` and `shape` ask for, or it is a link to
            somewhere else.
    """
    expected = chunk_bytes(dtype, shape)
    if within is not None:
        check_inside(within, path)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DatasetError(
            f"chunk file {path} is missing; `forebay dataset verify` lists all that are; restore it from a copy"
        ) from None
    if size != expected:
        raise DatasetError(
            f"chunk file {path} has {size} bytes where {expected} are due (shape {shape}, {dtype}); "
            f"restore it from a copy; a stored block is not solved again"
        )
    return np.asarray(np.memmap(path, dtype.newbyteorder("<"), "r", shape=shape))


def check_inside(folder: Path, file: Path) -> None:
    """Refuse a file that a link takes out of the folder; the folder itself may be reached through links.

    Raises:
        DatasetError: says where the file really is.
    """
    real, root = os.path.realpath(file), os.path.realpath(folder)
    if os.path.commonpath((real, root)) != root:
        raise DatasetError(
            f"{file} is a link to {real}, outside of the data set; put a copy of the file in its place if you know it, "
            f"and do not use this data set otherwise"
        )


def chunk_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Size of a chunk file in bytes."""
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def write_atomically(path: Path, parts: Iterable[memoryview | bytes]) -> None:
    """Put a file in place durably: temporary name, fsync, rename, fsync of the folder.

    Missing folders above it are created, and made durable too.

    Raises:
        DatasetError: the operating system refuses; says how much was needed and how much is free.
    """
    write_all_atomically([(path, list(parts))])


def write_all_atomically(files: Sequence[tuple[Path, Sequence[memoryview | bytes]]]) -> None:
    """`write_atomically` for several files, each complete or not there; all of them are durable when it returns.

    Raises:
        DatasetError: as there; files that had their names by then keep them, of the others nothing stays behind.
    """
    unnamed: dict[Path, Path] = {}
    changed: dict[Path, None] = {}
    path, parts = Path(), files[0][1]
    try:
        with contextlib.ExitStack() as opened:
            descriptors = []
            for path, parts in files:
                changed |= dict.fromkeys(_make_folders(path.parent))
                temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
                unnamed[path] = temporary
                file = opened.enter_context(open(temporary, "xb"))
                for part in parts:
                    file.write(part)
                file.flush()
                descriptors.append(file.fileno())
            _fsync_all(descriptors)
        for path, parts in files:  # noqa: B007 - the error names both
            os.replace(unnamed[path], path)
            del unnamed[path]
        sync_all(changed)
    except OSError as error:
        for temporary in unnamed.values():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                temporary.unlink()
        raise DatasetError(_explain(path, sum(len(part) for part in parts), error)) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(paths: Iterable[Path]) -> None:
    """Make files and the names in folders durable, many at the same time."""
    paths = list(paths)
    for start in range(0, len(paths), AT_ONCE):
        with contextlib.ExitStack() as opened:
            descriptors = []
            for path in paths[start : start + AT_ONCE]:
                descriptors.append(os.open(path, os.O_RDONLY))
                opened.callback(os.close, descriptors[-1])
            _fsync_all(descriptors)


def _fsync_all(descriptors: Sequence[int]) -> None:
    if len(descriptors) == 1:
        os.fsync(descriptors[0])
        return
    with ThreadPoolExecutor(min(len(descriptors), AT_ONCE)) as pool:
        for done in [pool.submit(os.fsync, descriptor) for descriptor in descriptors]:
            done.result()


def leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files that a killed writer left anywhere below a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX):
                yield Path(parent, name)


def _make_folders(folder: Path) -> list[Path]:
    """Make what is missing; the folders whose contents change by it, and by a new file, deepest first."""
    changed = [folder]
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
        changed.append(folder)
    for child in reversed(missing):
        # Two attempts at the same chunk may meet here; the folder is all that either wants.
        child.mkdir(exist_ok=True)
    return changed


def _explain(path: Path, needed: int, error: OSError) -> str:
    existing = next((parent for parent in path.parents if parent.is_dir()), Path(path.anchor or "."))
    free = shutil.disk_usage(existing).free
    remedy = _REMEDIES.get(error.errno or 0, "check the file system, then resume")
    return f"cannot write {path}: {error.strerror or error} ({needed} bytes needed, {free} bytes free); {remedy}"
