"""Models for clusters of samples, made in the course of a run where they would have less error than the one of all.

kept full samples ─► clusters, classifier, gain ─► worth it? ─┬─ yes: replay ─► a model for each ─► next version
                                                              └─ no: one model as before; asked once more, later
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.pipeline.chunks import write_atomically
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.basis import Bases, Basis, Settings, basis_of
from forebay.solvers.rom.calibration import Calibration
from forebay.solvers.rom.clusters import LocalBases, decide
from forebay.solvers.rom.kept_samples import KeptSample, KeptSamples, replayed
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.local_gain import LocalSettings
from forebay.solvers.rom.offline import LEVEL, Origin, Reduced, calibrated, make_package, own_pairs

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

log = logging.getLogger(__name__)

MODES = 6
"""n at which the bases are compared."""
ASKED: Mapping[Bases, tuple[int, ...]] = {"global": (), "auto": (24, 48), "local": (8, 16, 32, 48)}
"""Full samples after which it is asked; with 24 of a necked bar the classifier still chose wrong clusters, and said so.

"local" takes clusters whatever they gain, and asks again only where there are no two to be found."""
_VERDICT = "bases.json"


def is_over(library: Library, bases: Bases) -> bool:
    """Is nothing to be asked any more?"""
    verdict = verdict_of(library)
    asked = ASKED[bases]
    return not asked or (verdict is not None and (bool(verdict["local"]) or verdict["samples"] >= asked[-1]))


def is_due(samples: int, bases: Bases) -> bool:
    """Is it time to ask?"""
    return samples in ASKED[bases]


def verdict_of(library: Library) -> dict[str, Any] | None:
    """The last answer, with its "reason"; None where nobody asked."""
    try:
        content: dict[str, Any] = json.loads((library.folder / _VERDICT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def ask_for_local(
    model: SolidModel, problem: SolidProblem, library: Library, settings: Settings, origin: Origin
) -> int:
    """Decide, publish local models where these are better, and leave the verdict; the latest version; collective.

    `origin` is that of the version to be made.

    Raises:
        CubatureError: a cubature misses its tolerance.
        DatasetError: the disk is full.
    """
    samples = KeptSamples(library.folder).read(model)
    histories = [problem.history(sample.draw) for sample in samples]
    lifted = [
        (sample.displacement - history.displacements @ model.lifts.T)[1:].T
        for sample, history in zip(samples, histories, strict=True)
    ]
    parameters = np.array([sample.draw["parameters"] for sample in samples])
    local = LocalSettings(modes=MODES)
    if settings.bases == "local":
        local = replace(local, threshold=0.0)
    version = origin.version - 1
    try:
        found = decide(lifted, model.dof_weights, parameters, model.comm, local)
    except ValueError as error:
        log.warning("local bases were not judged: %s", error)
        _leave(model, library, {"local": False, "reason": f"the full samples cannot be compared: {error}"}, samples)
        return version
    if not isinstance(found, LocalBases):
        _leave(model, library, found.to_dict(), samples)
        return version
    log.info("%s", found.decision.reason)
    library.publish_local(
        model, found.decision, [_cluster(model, problem, m, settings, origin) for m in _members(found, samples)]
    )
    _leave(model, library, found.decision.to_dict() | {"version": origin.version}, samples)
    return origin.version


def _members(found: LocalBases, samples: Sequence[KeptSample]) -> list[list[KeptSample]]:
    labels = found.decision.labels
    return [
        [sample for sample, label in zip(samples, labels, strict=True) if label == cluster]
        for cluster in range(len(found.bases))
    ]


def _cluster(
    model: SolidModel, problem: SolidProblem, members: Sequence[KeptSample], settings: Settings, origin: Origin
) -> Reduced:
    """One cluster's model; one simulation at a time is in memory.

    Its calibration has pairs of the second half of the members, with a model of the first half, which is too poor, and
    with the one of all, which is too good; see `offline.build`.
    """
    half = len(members) // 2
    basis = _extended(model, problem, None, members[:half], settings)
    first = make_package(model, basis, origin)
    basis = _extended(model, problem, basis, members[half:], settings)
    whole = make_package(model, replace(basis, points=first.basis.points), origin)
    pairs = []
    for sample in members[half:]:
        run = replayed(model, problem.history(sample.draw), sample.displacement)
        pairs += [own_pairs(model, [run], reduced, origin.law) for reduced in (first, whole)]
    return calibrated(whole, Calibration(np.vstack(pairs), LEVEL))


def _extended(
    model: SolidModel, problem: SolidProblem, basis: Basis | None, members: Sequence[KeptSample], settings: Settings
) -> Basis:
    for sample in members:
        run = replayed(model, problem.history(sample.draw), sample.displacement)
        basis = basis_of(model, [run], settings) if basis is None else basis.extended(model, [run])
    assert basis is not None
    return basis


def _leave(model: SolidModel, library: Library, verdict: dict[str, Any], samples: Sequence[KeptSample]) -> None:
    if model.comm.rank == 0:
        text = json.dumps({"samples": len(samples), **verdict})
        write_atomically(library.folder / _VERDICT, [text.encode()])
    model.comm.barrier()
