"""Full samples that a library keeps until it is decided whether clusters of them get models of their own.

Only what they were drawn from and their displacement, in float32: stress and internal variables come back by a replay
of the law, which costs a small part of a simulation.  0.4 MB a sample of 2,500 degrees of freedom and 40 steps.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from forebay.pipeline.chunks import write_atomically
from forebay.pipeline.stages import Draw
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import plastic_strain
from forebay.solvers.rom.basis import Run
from forebay.solvers.rom.collective import from_root

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel, SolidState

_FOLDER = "samples"


@dataclass(frozen=True, slots=True, eq=False)
class KeptSample:
    """One of them, with the rows that this process owns."""

    draw: Draw
    displacement: np.ndarray
    """(s + 1, dofs), [mm]."""


@dataclass(frozen=True, slots=True)
class KeptSamples:
    """Those of the library in `folder`."""

    folder: Path

    def paths(self) -> list[Path]:
        """Files in the order in which they came."""
        return sorted((self.folder / _FOLDER).glob("[0-9]*.npz"))

    def add(self, model: SolidModel, draw: Draw, displacement: np.ndarray) -> int:
        """Keep one, rows (s + 1, dofs) as owned; how many there are now; collective.

        Raises:
            DatasetError: on every process: the disk is full.
        """
        rows = model.gather(np.ascontiguousarray(displacement.T, dtype=np.float32), model.dof_ids)

        def write() -> tuple[int, list[None]]:
            number = len(self.paths()) + 1
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {f"draw_{name}": value for name, value in draw.items()}
            np.savez(buffer, displacement=cast(np.ndarray, rows), **arrays)
            write_atomically(self.folder / _FOLDER / f"{number:04d}.npz", [buffer.getvalue()])
            return number, [None] * model.comm.size

        count, _ = from_root(model.comm, write)
        return int(count)

    def read(self, model: SolidModel) -> list[KeptSample]:
        """All of them."""
        rows = np.searchsorted(np.sort(np.concatenate(model.comm.allgather(model.dof_ids))), model.dof_ids)
        found = []
        for path in self.paths():
            with np.load(path, allow_pickle=False) as file:
                draw = {name.removeprefix("draw_"): file[name] for name in file.files if name.startswith("draw_")}
                found.append(KeptSample(draw, np.ascontiguousarray(file["displacement"][rows].T, dtype=float)))
        return found

    def clear(self, model: SolidModel) -> None:
        """Remove them; collective."""
        model.comm.barrier()
        if model.comm.rank == 0:
            shutil.rmtree(self.folder / _FOLDER, ignore_errors=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Replayed:
    displacement: np.ndarray
    stress: np.ndarray
    p: np.ndarray


def replayed(model: SolidModel, history: History, displacement: np.ndarray) -> Run:
    """The simulation that had these displacements, as a run; steps that were cut come out a little different."""
    stress = np.zeros((len(displacement), model.points, 6))
    p = np.zeros((len(displacement), model.points))

    def keep(k: int, state: SolidState) -> None:
        stress[k], p[k] = state.stress, plastic_strain(history.law, state.variables)

    model.replay(history, displacement, observe=keep)
    return Run(history, _Replayed(displacement, stress, p))
