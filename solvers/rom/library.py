"""Versions of one reduced model in a folder, shared by every solver of a run.

    <folder>/v0007/package.npz      small, what a reduced solve needs
    <folder>/v0007/basis.npz        modes on the whole mesh in canonical order, what the next version is made from
    <folder>/v0025/local.json       from some version on, perhaps: clusters of samples that have models of their own,
    <folder>/v0025/package-0.npz    and one of these files for each
    <folder>/lock                   held by whoever makes the next version

A version is a folder that appears whole, by a rename; the largest number is the latest.  Of its files those that did
not change are links to those of the version before.  All packages are kept, since records name the version that made a
sample; bases of older versions are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forebay.pipeline.chunks import sync_folder, write_atomically
from forebay.pipeline.errors import RunError
from forebay.solvers.materials.law import Law
from forebay.solvers.rom.basis import Basis
from forebay.solvers.rom.basis_file import gathered, load_basis
from forebay.solvers.rom.clusters import Decision
from forebay.solvers.rom.collective import from_root
from forebay.solvers.rom.offline import Reduced
from forebay.solvers.rom.package import PackageError, RomPackage

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

_LOCAL = "local.json"
_KEPT_BASES = 2
"""The latest, and the one before: a reader may be at it."""


@dataclass(frozen=True, slots=True)
class Library:
    """The versions in a folder; the folder is made with the first.

    `cluster` is None for the model of all samples, else the number of a cluster's, where the version has them.
    """

    folder: Path

    @property
    def latest(self) -> int:
        """Number of the latest version, 0 where there is none."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return 0
        return max((int(name[1:]) for name in names if name.startswith("v") and name[1:].isdigit()), default=0)

    def decision(self, version: int) -> Decision | None:
        """How a version chooses a cluster for a sample; None where it has one model for all.

        Raises:
            RunError: it is damaged.
        """
        path = self._path(version) / _LOCAL
        try:
            return Decision.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise RunError(f"{str(path)!r} cannot be read ({error!r}); remove its version's folder") from error

    def package(self, version: int, law: Law, cluster: int | None = None) -> RomPackage:
        """A version's package, checked against the law.

        Raises:
            RunError: it is missing, damaged, or of another law.
        """
        path = self._path(version) / _package(cluster)
        try:
            return RomPackage.load(path, law)
        except (PackageError, OSError) as error:
            raise RunError(f"version {version} of the reduced model cannot be used: {error}") from error

    def basis(self, version: int, model: SolidModel, cluster: int | None = None) -> Basis:
        """A version's basis, each process its rows; collective.

        Raises:
            RunError: on every process: it is missing or damaged, or its mesh is not the model's.
        """
        return load_basis(self._path(version) / _basis(cluster), model)

    def reduced(self, version: int, model: SolidModel, law: Law, cluster: int | None = None) -> Reduced:
        """Package and basis, the package numbered as the version, though the file may be an older one's; collective.

        Raises:
            RunError: as `package` and `basis`.
        """
        package = replace(self.package(version, law, cluster), version=version)
        return Reduced(package, self.basis(version, model, cluster), 0.0)

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

    def publish(self, model: SolidModel, reduced: Reduced, cluster: int | None = None) -> None:
        """Make a version visible; collective, and the first process should hold the lock.

        The other models of the version before are taken over.

        Raises:
            RunError: on every process: there is such a version already.
            DatasetError: on every process: the disk is full.
        """
        content = gathered(model, reduced.basis) or b""
        version = reduced.package.version

        def write() -> tuple[None, list[None]]:
            files = {_package(cluster): reduced.package.to_bytes(), _basis(cluster): content}
            self._write(version, files)
            return None, [None] * model.comm.size

        from_root(model.comm, write)

    def publish_local(self, model: SolidModel, decision: Decision, clusters: Sequence[Reduced]) -> None:
        """Make a version visible that has a model for each cluster beside the one of all; collective, as `publish`.

        Raises:
            RunError, DatasetError: as `publish`.
        """
        contents = [gathered(model, reduced.basis) or b"" for reduced in clusters]

        def write() -> tuple[None, list[None]]:
            files = {_LOCAL: json.dumps(decision.to_dict()).encode()}
            for number, (reduced, content) in enumerate(zip(clusters, contents, strict=True)):
                files |= {_package(number): reduced.package.to_bytes(), _basis(number): content}
            self._write(clusters[0].package.version, files)
            return None, [None] * model.comm.size

        from_root(model.comm, write)

    def _write(self, version: int, files: Mapping[str, bytes]) -> None:
        final, before = self._path(version), self._path(version - 1)
        if final.exists():
            raise RunError(f"{final} exists already; a version is published once, by whoever holds the lock")
        draft = self.folder / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            for name, content in files.items():
                write_atomically(draft / name, [content])
            for old in sorted(before.glob("*")):
                if old.name not in files:
                    _link(old, draft / old.name)
            os.replace(draft, final)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for number in range(1, version - _KEPT_BASES + 1):
            for old in self._path(number).glob("basis*.npz"):
                old.unlink(missing_ok=True)

    def _path(self, version: int) -> Path:
        return self.folder / f"v{version:04d}"


def _package(cluster: int | None) -> str:
    return "package.npz" if cluster is None else f"package-{cluster}.npz"


def _basis(cluster: int | None) -> str:
    return "basis.npz" if cluster is None else f"basis-{cluster}.npz"


def _link(old: Path, new: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(old, new)
    except OSError:
        write_atomically(new, [old.read_bytes()])
