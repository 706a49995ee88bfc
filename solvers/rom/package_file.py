"""The file of a reduced model: one .npz of plain arrays, one of which is JSON."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.chunks import write_atomically

FORMAT = 1
"""Raised whenever an old reader would misunderstand the file."""
_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, OverflowError, RuntimeError, SyntaxError, ValueError, struct.error)
"""What zipfile and numpy raise over bytes that were changed, and that are in memory already: none is the disk's."""


class PackageError(ValueError):
    """A reduced model that does not fit together, or a file that is not one."""


def write(path: Path, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Put the file in place durably, whole or not at all.

    Raises:
        DatasetError: the operating system refuses to write.
    """
    write_atomically(path, [content_of(metadata, arrays)])


def content_of(metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """What `write` writes."""
    text = json.dumps({"format": FORMAT, **metadata}, allow_nan=False).encode()
    members: dict[str, Any] = {"metadata": np.frombuffer(text, np.uint8), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **members)
    return buffer.getvalue()


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays.

    Raises:
        PackageError: not such a file, damaged, or of another format.
        FileNotFoundError: no such file.
        KeyError: no metadata.
    """
    return parse(path.read_bytes(), repr(str(path)))


def parse(content: bytes, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `content_of`; `name` is for messages.

    Raises:
        PackageError, KeyError: as `read`.
    """
    try:
        members = _members(content)
    except _DAMAGE as error:
        raise PackageError(
            f"{name} is not a package, or damaged or cut short ({error}); copy it again or rebuild it"
        ) from error
    return _metadata(name, members.pop("metadata")), members


def _members(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name.removesuffix(".npy"): file[name] for name in names}


def _metadata(name: str, content: np.ndarray) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = json.loads(content.tobytes())
    except ValueError as error:
        raise PackageError(f"the metadata of {name} cannot be read ({error}); rebuild it") from error
    if metadata["format"] != FORMAT:
        raise PackageError(
            f"{name} has package format {metadata['format']}, this version reads {FORMAT}; rebuild it, or "
            f"read it with the version that wrote it"
        )
    return metadata
