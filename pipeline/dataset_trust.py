"""What a data set that came from somebody else may not do to its reader.

Opening, checking, summing up, exporting and training on a data set run none of its code: it is JSON and numbers.  What
is left to abuse are names that lead out of the folder, links to files outside, types and codecs that call libraries,
and sizes that fill the memory.  Each is refused with a `DatasetError` before anything is read or allocated by it.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.chunks import check_inside
from forebay.pipeline.errors import DatasetError

LARGEST_DOCUMENT = 64 * 2**20
"""Bytes of a metadata document; ours have some tens of KiB."""
SHARE = 4
"""Nothing that a data set declares may need more than the SHARE-th part of the machine's memory at once."""
DATA_TYPES = frozenset(
    {"bool", "float32", "float64", *(f"{kind}{8 * b}" for kind in ("int", "uint") for b in (1, 2, 4, 8))}
)
"""Plain numbers: no objects, no strings, nothing that an extension of zarr would have to interpret."""
CODECS = frozenset({"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"})
"""The codecs of the Zarr v3 specification; others belong to whatever packages are installed."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def is_name(text: Any) -> bool:
    """May an array, a dimension or a field be called that?  Letters, digits and underscores: never a path."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def read_json(path: Path) -> Any:
    """A metadata document as JSON values.

    Raises:
        DatasetError: it is larger than any that we write, or no JSON; FileNotFoundError and NotADirectoryError pass.
    """
    found = path.stat()  # before it is opened: a pipe would wait for ever
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_DOCUMENT:
        raise DatasetError(
            f"{path} is no metadata document: it has {found.st_size} bytes, and may be a file of {LARGEST_DOCUMENT} at "
            f"most; restore it from a copy"
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON ({error}); restore it from a copy") from error


def check_arrays(group: Path, arrays: Any) -> None:
    """Hold the metadata of all arrays of a group against what can be read safely.

    Raises:
        DatasetError: names the array, what it says, and what is allowed.
    """
    if not isinstance(arrays, Mapping):
        raise DatasetError(f"{group / 'zarr.json'} lists no arrays; restore it from a copy")
    for name, array in arrays.items():
        if not is_name(name):
            raise DatasetError(
                f"{group} has an array called {name!r}; names are letters, digits and underscores, so that none leads "
                f"out of the folder; do not use this data set"
            )
        check_array(group, name, array)


def check_array(group: Path, name: str, array: Any) -> None:
    """As `check_arrays`, for one array's metadata document."""
    try:
        grid, kind, dims = array["chunk_grid"], array["data_type"], array["dimension_names"]
        shape, chunks = array["shape"], grid["configuration"]["chunk_shape"]
        codecs = set(_codec_names(array["codecs"]))
        regular = (array["node_type"], array["zarr_format"], grid["name"]) == ("array", 3, "regular")
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"array {name!r} of {group} has metadata that no Zarr v3 array has ({error!r}); restore it from a copy"
        ) from error
    lengths = _are_lengths(shape, 0) and _are_lengths(chunks, 1) and isinstance(dims, list) and all(map(is_name, dims))
    if not regular or not lengths or not len(shape) == len(chunks) == len(dims):
        raise DatasetError(
            f"array {name!r} of {group} has shape {shape}, chunks {chunks} and dimensions {dims}; all must be lists of "
            f"one length, of natural numbers and names; restore zarr.json from a copy"
        )
    allowed = f"only these are read: {', '.join(sorted(DATA_TYPES))}"
    if not isinstance(kind, str) or kind not in DATA_TYPES:
        raise DatasetError(f"array {name!r} of {group} has the type {kind!r}; {allowed}")
    if strange := sorted(codecs - CODECS):
        allowed = f"only these are read: {', '.join(sorted(CODECS))}"
        raise DatasetError(f"array {name!r} of {group} has the codec {strange[0]!r}; {allowed}")
    item = np.dtype(kind).itemsize
    check_memory(group, f"a chunk of array {name!r}, shape {chunks},", item * math.prod(chunks))


def check_memory(group: Path, what: str, nbytes: int) -> None:
    """Refuse to need that many bytes at once when it cannot be meant.

    Raises:
        DatasetError: more than the `SHARE`-th part of the memory that this process may have.
    """
    allowed = memory_bytes() // SHARE
    if nbytes > allowed:
        raise DatasetError(
            f"{group}: {what} would need {nbytes} bytes of memory, above {allowed}, a {SHARE}th of what there is; use "
            f"a machine with more memory if the data set is meant to be that large, and do not use it otherwise"
        )


def memory_bytes() -> int:
    """Memory of the machine, or what this process is limited to (`ulimit -v`)."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return physical if limit == resource.RLIM_INFINITY else min(physical, limit)


def check_links(group: Path, folder: Path) -> None:
    """`check_inside` for a folder of the group and all links below it, before a library reads files there by itself."""
    check_inside(group, folder)
    for link in _links(folder):
        check_inside(group, link)


def printable(text: str) -> str:
    """Text from a data set without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _codec_names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        yield codec["name"]
        inner = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            yield from _codec_names(inner.get(key, ()))


def _are_lengths(values: Any, low: int) -> bool:
    return isinstance(values, list) and all(type(v) is int and low <= v < 2**48 for v in values)


def _links(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(Path(entry.path))
