"""A data set in other people's formats: `forebay dataset export`.

    well      HDF5 as The Well lays it out, one file a split             needs h5py
    icechunk  an Icechunk repository with one committed snapshot         needs icechunk
    repacked  Zarr v3 with other chunks, shards and compression          needs nothing more

The target appears complete or not at all: everything is written into a hidden folder beside it, made durable, and gets
its name by one rename.  A failure or Ctrl-C removes that folder; a kill leaves it, and the next export to the same
target removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from forebay.pipeline.chunks import sync_all, sync_folder
from forebay.pipeline.dataset_layout import dataset_folders
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import Split

ExportFormat = Literal["well", "icechunk", "repacked"]
Compression = Literal["none", "zstd", "gzip", "blosc"]
Boundary = Literal["wall", "open", "periodic"]

PIECE = 16 * 2**20
"""Bytes of a field that are read and written at a time, unless a chunk or a shard is larger."""
_MODULES: Mapping[ExportFormat, str] = {
    "well": "dataset_export_well",
    "icechunk": "dataset_export_zarr",
    "repacked": "dataset_export_zarr",
}
_SPARE = 2**20
_STALE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export; what a format does not know it refuses."""

    format: ExportFormat
    everything: bool = False
    """Also the samples that are not valid: NaN in their fields, their outcomes in the records."""
    chunk_samples: int | None = None
    """Zarr: samples in one chunk; those of the source by default.  1 suits readers that pick single samples."""
    shard_samples: int | None = None
    """Zarr: samples in one file of several chunks, a multiple of `chunk_samples`; no shards by default."""
    compression: Compression = "none"
    """Zarr: float32 fields shrink by a tenth or so, smooth ones by more."""
    level: int | None = None
    """Of the compression: 1 to 9, zstd up to 22; the library's own by default."""
    boundary: Boundary = "wall"
    """The Well: what the sides of the domain are; the words of the problem go along."""

    def __post_init__(self) -> None:
        if self.format not in get_args(ExportFormat):
            raise DatasetError(f"format {self.format!r} is not one of {', '.join(get_args(ExportFormat))}")
        zarr_only = (self.chunk_samples, self.shard_samples, self.level) != (None, None, None)
        if self.format == "well" and (zarr_only or self.compression != "none"):
            raise DatasetError(
                "chunks, shards and compression are for the formats icechunk and repacked; The Well's files have none"
            )
        if self.format != "well" and self.boundary != "wall":
            raise DatasetError(f"boundary = {self.boundary!r} is for the format well; Zarr keeps the problem's words")


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The samples of one data set that are exported, in the order of their ids."""

    reader: DatasetReader
    rows: np.ndarray
    """Sample ids, int64, ascending."""

    @property
    def split(self) -> Split:
        """Of the data set."""
        return self.reader.plan.split

    @property
    def is_partial(self) -> bool:
        """Are some samples left out?"""
        return len(self.rows) < self.reader.samples

    @property
    def nbytes(self) -> int:
        """Of the fields of the selected samples, uncompressed."""
        return len(self.rows) * self.reader.schema.sample_nbytes

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the selection, of any per-sample array."""
        return self.reader.read(name, self.rows[start:stop])

    def pieces(self, name: str, unit: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
        """A field in parts of some `PIECE` bytes, each a multiple of `unit` samples but the last."""
        each = 4 * int(np.prod(self.reader.schema.sample_shape(name), dtype=np.int64))
        step = unit * max(1, PIECE // max(1, unit * each))
        for start in range(0, len(self.rows), step):
            stop = min(start + step, len(self.rows))
            yield slice(start, stop), self.read(name, start, stop)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    samples: dict[Split, int]
    left_out: int
    """Samples of all splits that are not valid."""
    nbytes: int
    """On disk."""


Advance = Callable[[int], None]
"""Told how many more bytes of fields have been written."""


class _Writer(Protocol):
    def check(self, selection: Selection, options: ExportOptions) -> None:
        """Refuse what the format cannot hold, before anything is written."""

    def write(self, selections: Sequence[Selection], folder: Path, options: ExportOptions, advance: Advance) -> None:
        """Write all splits below `folder`."""


def select(path: Path | str, *, everything: bool = False) -> list[Selection]:
    """The valid samples, or all, of a data set or of both data sets of a run folder.

    Raises:
        DatasetError: no data set there, one that must not be trusted, or no sample to be had.
    """
    found = []
    for folder in dataset_folders(Path(path)):
        reader = DatasetReader(folder, maps=4)
        found.append(Selection(reader, np.arange(reader.samples) if everything else reader.valid))
    if not any(len(selection.rows) for selection in found):
        raise DatasetError(f"{path} has no {'' if everything else 'valid '}samples yet; export when there are some")
    return [selection for selection in found if len(selection.rows)]


def export(
    path: Path | str, target: Path | str, options: ExportOptions, progress: Callable[[int, int], None] | None = None
) -> Exported:
    """Copy a data set, or both of a run folder, to the new folder `target` in another format.

    A run that is still going on is exported as far as it is published.  Values are copied bit for bit.  `progress` is
    told the bytes of fields that are done, and all.

    Raises:
        DatasetError: `target` exists or lies in the source, too little space, a library is missing, or the format
            cannot hold such data; nothing is left behind.
    """
    target = Path(target)
    selections = select(path, everything=options.everything)
    writer = _load(options.format)
    for selection in selections:
        writer.check(selection, options)
    total = sum(selection.nbytes for selection in selections)
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    with _building(target, [s.reader.path for s in selections], total) as folder:
        writer.write(selections, folder, options, advance)
    return Exported(
        path=target,
        samples={selection.split: len(selection.rows) for selection in selections},
        left_out=sum(selection.reader.samples - len(selection.rows) for selection in selections),
        nbytes=sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
    )


def _load(name: ExportFormat) -> _Writer:
    try:
        module = import_module(f"forebay.pipeline.{_MODULES[name]}")
        writer: _Writer = module.WRITERS[name]()
    except ModuleNotFoundError as error:
        if error.name not in ("h5py", "icechunk"):
            raise
        raise DatasetError(
            f"the format {name} needs {error.name}, which is not installed: pip install 'forebay[export]'"
        ) from None
    return writer


@contextlib.contextmanager
def _building(target: Path, sources: Sequence[Path], nbytes: int) -> Iterator[Path]:
    """A folder that becomes `target` when the block ends well, and vanishes when it does not."""
    _check_target(target, sources)
    folder = target.with_name(f".{target.name}.export.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target, nbytes)
        with _claimed(folder):
            try:
                yield folder
                _sync(folder)
                os.rename(folder, target)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in _STALE and os.path.lexists(target):
            raise DatasetError(f"{target} has come into being meanwhile and is not overwritten; export anew") from error
        raise DatasetError(
            f"cannot export to {target}: {error.strerror or error}; nothing is left of it; make room there, or choose "
            f"another folder"
        ) from error


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder anew, and hold a lock on it that vanishes with this process."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"another process is exporting into {folder}; wait for it, or choose another") from None
        for left in folder.iterdir():  # of an export that was killed
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        os.close(descriptor)


def _check_target(target: Path, sources: Sequence[Path]) -> None:
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise DatasetError(f"{target} exists and is not overwritten; remove it, or export to another folder")
    real = target.resolve()
    for source in sources:
        if source.resolve() in (real, *real.parents):
            raise DatasetError(f"{target} lies in the data set {source}; export to a folder outside of it")


def _check_space(target: Path, nbytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if nbytes + _SPARE > free:
        raise DatasetError(
            f"{target} needs up to {nbytes + _SPARE} bytes, {target.parent.resolve()} has {free} free; make room, or "
            f"export to another disk"
        )


def _sync(folder: Path) -> None:
    """Make every file below a folder durable, and every name."""
    entries = [(Path(parent), names) for parent, _, names in os.walk(folder)]
    sync_all(path for parent, names in entries for path in (*(parent / name for name in names), parent))
