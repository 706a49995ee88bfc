"""The file of a basis: modes on the whole mesh in canonical order, read by any number of processes."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.pipeline.errors import RunError
from forebay.solvers.rom.basis import Basis, Settings
from forebay.solvers.rom.pod import Pod

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

_DAMAGE = (
    *(zipfile.BadZipFile, EOFError, KeyError, OSError, OverflowError, RuntimeError, SyntaxError, ValueError),
    struct.error,
)
"""What the operating system, zipfile, numpy and JSON say of a file that is missing or was changed."""
_ORTHONORMAL = 1e-6
"""How far modes may be from orthonormal on the model's mesh: rounding, far below what another mesh makes of them."""


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


def gathered(model: SolidModel, basis: Basis) -> bytes | None:
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
