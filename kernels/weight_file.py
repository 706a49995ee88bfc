"""The file of learned weights: safetensors with a header that says what the numbers are and a digest over them.

Imports no torch: a PETSc process reads weights as well.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

_OWN = ("kind", "format", "digest")


class WeightsError(ValueError):
    """Weights that cannot be used: damaged, of another kind, format or dimension, or of wrong shapes."""


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, types and values, independent of the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def write(path: Path, kind: str, layout: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Put the file in place whole or not at all: written beside its name, flushed to disk, renamed.

    Args:
        path: its folder is made when missing.
        kind: what the weights are for, for example "grid".
        layout: number of the layout of the arrays; raised whenever an old reader would misunderstand them.
        arrays: plain numbers by name.
        facts: what else a reader wants to know, as text; "kind", "format" and "digest" are added.

    Raises:
        OSError: the file system refuses.
    """
    header = {**facts, "kind": kind, "format": str(layout), "digest": digest(arrays)}
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=header)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path, kind: str, layout: int) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Facts and arrays of a file that `write` made.

    Raises:
        WeightsError: damaged, of another kind, or of another format.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is no file of weights; train some, or name another file")
    try:
        with safe_open(path, framework="np") as file:
            facts = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise WeightsError(
            f"{str(path)!r} is no safetensors file, or damaged or cut short ({error}); copy it again or retrain"
        ) from error
    _check_header(path, facts, kind, layout)
    if digest(arrays) != facts["digest"]:
        raise WeightsError(f"the numbers of {str(path)!r} do not match its digest; copy it again or retrain")
    return facts, arrays


def _check_header(path: Path, facts: Mapping[str, str], kind: str, layout: int) -> None:
    missing = [name for name in _OWN if name not in facts]
    if missing:
        raise WeightsError(f"{str(path)!r} has no {missing[0]!r} in its header, so it holds no weights of ours")
    if facts["kind"] != kind:
        raise WeightsError(f"{str(path)!r} holds weights of kind {facts['kind']!r}, not {kind!r}; name another file")
    if facts["format"] != str(layout):
        raise WeightsError(
            f"{str(path)!r} has weights of format {facts['format']}, this version reads {layout}; retrain them, or use "
            f"the version that wrote them"
        )


_VERSION = re.compile(r"v(\d{4,})\.safetensors")


def version_path(folder: Path, version: int) -> Path:
    """`folder/v0001.safetensors`, ...: where a training publishes its versions."""
    return folder / f"v{version:04d}.safetensors"


def latest_version(folder: Path) -> tuple[int, Path] | None:
    """The newest version that was published into a folder, and its file; None if there is none.

    `write` renames whole files into place, so whatever has such a name can be read at once.
    """
    if not folder.is_dir():
        return None
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _VERSION.fullmatch(path.name))]
    return max(found, default=None)
