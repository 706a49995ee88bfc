"""Arrays in memory that has no name: written once, mapped by every process that gets its descriptor.

`memfd_create` gives pages of the kind that /dev/shm has, without a file in it: nothing is left behind however a process
ends, and the size of /dev/shm, 64 MB in a container by default, is no limit.  Arrays that do not fit into free memory
go to an unlinked file in the folder for temporary files.
"""

from __future__ import annotations

import ast
import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.cluster.mpi_errors import MpiError

ALIGNMENT = 64
"""Bytes; the start of every array is a multiple, as vector instructions and .npy files have it."""

_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Packed:
    """Arrays one after another in nameless memory; `close` (or `with`) when it has been sent."""

    descriptor: int | None
    """None when there is not a single byte to hold."""
    layout: list[dict[str, Any]]
    """For each array its name, dtype, shape and offset, as JSON holds them."""

    def close(self) -> None:
        """Close this process's descriptor; the memory lives as long as anybody's descriptor or mapping of it."""
        if self.descriptor is not None:
            os.close(self.descriptor)

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pack(arrays: Mapping[str, Any]) -> Packed:
    """Copy arrays (any shape, strides and byte order) into nameless memory in C order.

    Raises:
        ValueError: a name is not text, or an array holds Python objects or a type that numpy cannot describe.
        MpiError: neither memory nor the disk for temporary files has room.
    """
    ready = {name: _checked(name, value) for name, value in arrays.items()}
    layout: list[dict[str, Any]] = []
    size = 0
    for name, array in ready.items():
        offset = -(-size // ALIGNMENT) * ALIGNMENT
        layout.append({"name": name, "dtype": _text_of(array.dtype), "shape": list(array.shape), "offset": offset})
        size = offset + array.nbytes
    offsets = [entry["offset"] for entry in layout]
    return Packed(_written(size, offsets, list(ready.values())) if size else None, layout)


def view(descriptor: int | None, layout: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Map what `pack` wrote, read-only, and take over the descriptor: both are freed with the last of the arrays."""
    memory: mmap.mmap | bytes = b""
    if descriptor is not None:
        try:
            memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    return {entry["name"]: _array_in(memory, entry) for entry in layout}


def load(descriptor: int | None, layout: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Read what `pack` wrote into arrays of one's own, and close the descriptor.

    Not mapped: a mapping holds a descriptor, and who keeps a thousand results would run out of them.
    """
    try:
        arrays = {}
        for entry in layout:
            arrays[entry["name"]] = array = np.empty(entry["shape"], _dtype_of(entry["dtype"]))
            if array.nbytes and descriptor is not None:
                _read(descriptor, entry["offset"], array)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return arrays


def _checked(name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str):
        raise ValueError(f"array name {name!r} is a {type(name).__name__}; use text")
    array = np.asarray(value)
    # A type that numpy does not know (bfloat16, say) would come out as plain bytes.
    if array.dtype.hasobject or _dtype_of(_text_of(array.dtype)) != array.dtype:
        raise ValueError(
            f"array {name!r} has dtype {array.dtype}, which cannot pass to another process; "
            f"use numbers, booleans, fixed-length text, or a record of them"
        )
    return array


def _text_of(dtype: np.dtype[Any]) -> str:
    """As in the header of a .npy file."""
    return repr(np.lib.format.dtype_to_descr(dtype))


def _dtype_of(text: str) -> np.dtype[Any]:
    return np.lib.format.descr_to_dtype(ast.literal_eval(text))


def _array_in(memory: mmap.mmap | bytes, entry: Mapping[str, Any]) -> np.ndarray:
    dtype = _dtype_of(entry["dtype"])
    if 0 in entry["shape"] or dtype.itemsize == 0:  # numpy refuses an offset at the end of the buffer
        return np.empty(entry["shape"], dtype)
    return np.ndarray(entry["shape"], dtype, buffer=memory, offset=entry["offset"])


def _written(size: int, offsets: Sequence[int], arrays: Sequence[np.ndarray]) -> int:
    """Descriptor of memory, or of a file that no folder shows, that holds the arrays."""
    free = _free_memory_bytes()
    if size <= free and (descriptor := _filled(os.memfd_create("forebay-mpi"), offsets, arrays)) is not None:
        return descriptor
    with tempfile.TemporaryFile() as file:
        if (descriptor := _filled(os.dup(file.fileno()), offsets, arrays)) is not None:
            return descriptor
    folder = tempfile.gettempdir()
    left = shutil.disk_usage(folder).free
    raise MpiError(
        f"arrays of {size / 2**20:.1f} MiB fit neither into free memory ({free / 2**20:.1f} MiB) nor into {folder} "
        f"({left / 2**20:.1f} MiB free); send less at a time, or point TMPDIR to a larger disk"
    )


def _filled(descriptor: int, offsets: Sequence[int], arrays: Sequence[np.ndarray]) -> int | None:
    """The descriptor with the arrays behind it; None, and closed, where there is no room for them."""
    try:
        for offset, array in zip(offsets, arrays, strict=True):
            _write(descriptor, offset, array)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return None
        raise
    return descriptor


def _write(descriptor: int, offset: int, array: np.ndarray) -> None:
    """Written, not copied into a mapping: half the time, because the kernel takes no fault for every page."""
    if array.nbytes == 0:
        return
    data = _bytes_of(np.asarray(array, order="C"))
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _read(descriptor: int, offset: int, array: np.ndarray) -> None:
    data = _bytes_of(array)
    while data:
        count = os.preadv(descriptor, [data], offset)
        if count == 0:
            raise MpiError(f"{len(data)} bytes of an array are missing from what a rank sent")
        data, offset = data[count:], offset + count


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _free_memory_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
