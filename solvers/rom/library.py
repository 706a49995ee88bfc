"""Versions of one reduced model in a folder, shared by every solver of a run.

    <folder>/v0007/package.npz      small, what a reduced solve needs
    <folder>/v0007/basis.npz        modes on the whole mesh in canonical order, what the next version is made from
    <folder>/lock                   held by whoever makes the next version

A version is a folder that appears whole, by a rename; the largest number is the latest.  All packages are kept, since
records name the version that made a sample; bases of older versions are removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import secrets
import shutil
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from forebay.pipeline.chunks import sync_folder, write_atomically
from forebay.pipeline.errors import RunError
from forebay.solvers.materials.law import Law
from forebay.solvers.rom.basis import Basis, Settings
from forebay.solvers.rom.collective import from_root
from forebay.solvers.rom.offline import Reduced
from forebay.solvers.rom.package import PackageError, RomPackage
from forebay.solvers.rom.pod import Pod

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

_PACKAGE, _BASIS = "package.npz", "basis.npz"
_KEPT_BASES = 2
"""The latest, and the one before: a reader may be at it."""
_DAMAGE = (
    *(zipfile.BadZipFile, EOFError, KeyError, OSError, OverflowError, RuntimeError, SyntaxError, ValueError),
    struct.error,
)
"""What the operating system, zipfile, numpy and JSON say of a file that is missing or was changed."""
_ORTHONORMAL = 1e-6
"""How far modes may be from orthonormal on the model's mesh: rounding, far below what another mesh makes of them."""


@dataclass(frozen=True, slots=True)
class Library:
    """The versions in a folder; the folder is made with the first."""

    folder: Path

    @property
    def latest(self) -> int:
        """Number of the latest version, 0 where there is none."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return 0
        return max((int(name[1:]) for name in names if name.startswith("v") and name[1:].isdigit()), default=0)

    def package(self, version: int, law: Law) -> RomPackage:
        """A version's package, checked against the law.

        Raises:
            RunError: it is missing, damaged, or of another law.
        """
        path = self._path(version) / _PACKAGE
        try:
            return RomPackage.load(path, law)
        except (PackageError, OSError) as error:
            raise RunError(f"version {version} of the reduced model cannot be used: {error}") from error

    def basis(self, version: int, model: SolidModel) -> Basis:
        """A version's basis, each process its rows; collective.

        Raises:
            RunError: on every process: it is missing or damaged, or its mesh is not the model's.
        """
        return load_basis(self._path(version) / _BASIS, model)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to publish; waits for whoever has it.  The kernel frees it when its holder ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def publish(self, model: SolidModel, reduced: Reduced) -> None:
        """Make a version visible; collective, and the first process should hold the lock.

        Raises:
            RunError: on every process: there is such a version already.
            DatasetError: on every process: the disk is full.
        """
        gathered = _gathered(model, reduced.basis)

        def write() -> tuple[None, list[None]]:
            self._write(reduced.package, cast(bytes, gathered))
            return None, [None] * model.comm.size

        from_root(model.comm, write)

    def _write(self, package: RomPackage, basis: bytes) -> None:
        version = package.version
        final = self._path(version)
        if final.exists():
            raise RunError(f"{final} exists already; a version is published once, by whoever holds the lock")
        draft = self.folder / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            package.save(draft / _PACKAGE)
            write_atomically(draft / _BASIS, [basis])
            os.replace(draft, final)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for old in range(1, version - _KEPT_BASES + 1):
            (self._path(old) / _BASIS).unlink(missing_ok=True)

    def _path(self, version: int) -> Path:
        return self.folder / f"v{version:04d}"


def load_basis(path: Path, model: SolidModel) -> Basis:
    """Read what `Library.publish` wrote, each process its own rows; collective.

    Raises:
        RunError: on every process: no such file, a damaged one, or one of another mesh.
    """
    weights, basis, complaint = model.dof_weights, None, ""  # the weights are collective when first asked for
    try:
        basis = _restored(path, model, weights)
    except RunError as error:
        complaint = str(error)
    except _DAMAGE as error:
        complaint = f"basis {str(path)!r} cannot be read ({error!r}); remove its version's folder"
    complaints = [text for text in model.comm.allgather(complaint) if text]
    if complaints or basis is None:
        raise RunError(complaints[0])
    for pod in (basis.displacement, basis.stress):
        gram = pod.project(pod.modes, model.comm)
        if not np.allclose(gram, np.eye(len(gram)), rtol=0, atol=_ORTHONORMAL):
            raise RunError(_other_mesh(path, "lengths or volumes"))
    return basis


def _restored(path: Path, model: SolidModel, dof_weights: np.ndarray) -> Basis:
    """The file as it is, each process its rows; not collective."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # numpy does not notice damage behind the last byte that it reads
            raise zipfile.BadZipFile(f"{damaged} is damaged")
    with np.load(path, allow_pickle=False) as file:
        stored = dict(file)
    dofs = _rows(stored["dof_ids"], model.dof_ids, path, "degrees of freedom")
    points = _rows(stored["point_ids"], model.point_ids, path, "quadrature points")
    facts = json.loads(stored["facts"].tobytes())
    stress = stored["stress"][points]
    return Basis(
        displacement=_pod(stored["displacement"][dofs], stored, "displacement", facts, dof_weights),
        modes=facts["modes"],
        stress=_pod(
            stress.reshape(len(stress) * 6, stress.shape[2]), stored, "stress", facts, np.repeat(model.weights, 6)
        ),
        p=_pod(stored["p"][points], stored, "p", facts, model.weights) if "p" in stored else None,
        displacement_scale=facts["displacement_scale"],
        p_scale=facts["p_scale"],
        settings=Settings(**facts["settings"]),
        peaks=_owned(stored["peaks"], model.point_ids),
        points=np.sort(_owned(stored["points"], model.point_ids)),
    )


def _gathered(model: SolidModel, basis: Basis) -> bytes | None:
    """The basis in canonical order as a file, on the first process; collective."""
    pods = {"displacement": basis.displacement, "stress": basis.stress, **({"p": basis.p} if basis.p else {})}
    arrays: dict[str, Any] = {
        "displacement": model.gather(basis.displacement.modes, model.dof_ids),
        "stress": model.gather(basis.stress.modes.reshape(model.points, 6, -1), model.point_ids),
        "dof_ids": model.gather(model.dof_ids, model.dof_ids),
        "point_ids": model.gather(model.point_ids, model.point_ids),
    }
    if basis.p is not None:
        arrays["p"] = model.gather(basis.p.modes, model.point_ids)
    chosen = model.comm.gather((model.point_ids[basis.peaks], model.point_ids[basis.points]))
    if chosen is None:
        return None
    peaks, points = zip(*chosen, strict=True)
    ranking = np.argsort(np.concatenate([np.arange(len(part)) for part in peaks]), kind="stable")
    arrays |= {"peaks": np.concatenate(peaks)[ranking], "points": np.concatenate(points)}
    arrays |= {f"{name}_values": item.singular_values for name, item in pods.items()}
    facts = {
        "modes": basis.modes,
        "displacement_scale": basis.displacement_scale,
        "p_scale": basis.p_scale,
        "settings": dataclasses.asdict(basis.settings),
        "pods": {name: {"discarded": item.discarded, "snapshots": item.snapshots} for name, item in pods.items()},
    }
    arrays["facts"] = np.frombuffer(json.dumps(facts, allow_nan=False).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _pod(modes: np.ndarray, stored: dict[str, np.ndarray], name: str, facts: Any, weights: np.ndarray) -> Pod:
    known = facts["pods"][name]
    return Pod(np.ascontiguousarray(modes), stored[f"{name}_values"], weights, known["discarded"], known["snapshots"])


def _rows(stored: np.ndarray, owned: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Where the owned ids stand among the stored ones, which are ascending."""
    rows = np.searchsorted(stored, owned)
    if len(owned) and (rows.max() >= len(stored) or not np.array_equal(stored[rows], owned)):
        raise RunError(_other_mesh(path, what))
    return rows


def _other_mesh(path: Path, what: str) -> str:
    return (
        f"basis {str(path)!r} has other {what} than the model: it was made on another mesh; open it with the problem "
        f"that it was made for, or remove its version's folder"
    )


def _owned(ids: np.ndarray, point_ids: np.ndarray) -> np.ndarray:
    """Owned numbers of those points that this process has, in the order of `ids`."""
    order = np.argsort(point_ids)
    places = np.minimum(np.searchsorted(point_ids[order], ids), max(len(order) - 1, 0))
    if not len(order):
        return np.empty(0, np.int64)
    found = order[places]
    return found[point_ids[found] == ids].astype(np.int64)
