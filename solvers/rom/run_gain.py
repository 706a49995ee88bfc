"""Would several bases have served a finished run better than one?  Asked of the samples that it solved in full."""

from __future__ import annotations

import logging

import numpy as np

from forebay.pipeline.dataset_reader import DatasetReader
from forebay.solvers.rom.clusters import LocalBases, decide
from forebay.solvers.rom.collective import Alone
from forebay.solvers.rom.local_gain import LocalSettings
from forebay.solvers.rom.verdict import FULL

log = logging.getLogger(__name__)

LEAST = 24
"""Simulations below which a gain says nothing: with 24 of a necked bar the classifier still chose wrong clusters."""
MODES = 6
"""n at which the bases are compared."""


def judge_run(dataset: DatasetReader, field: str) -> dict[str, object]:
    """The decision between one basis and several, as plain values with its "reason".

    Compares the stored frames of `field`, in the inner product of its values; a run keeps no other full snapshots.
    """
    if FULL not in dataset.methods:
        return _none("no sample was solved in full")
    chosen = np.flatnonzero(dataset.column("valid") & (dataset.column("method") == dataset.methods.index(FULL)))
    if len(chosen) < LEAST:
        return _none(f"{len(chosen)} samples were solved in full, and {LEAST} are needed to compare: one basis is kept")
    fields = dataset.read(field, chosen).astype(np.float64)
    simulations = [sample.reshape(len(sample), -1).T for sample in fields]
    parameters = dataset.read("parameters", chosen)
    try:
        found = decide(simulations, np.ones(len(simulations[0])), parameters, Alone(), LocalSettings(modes=MODES))
    except ValueError as error:
        log.warning("local bases were not judged: %s", error)
        return _none(f"the samples solved in full cannot be compared: {error}")
    if not isinstance(found, LocalBases):
        return found.to_dict()
    decision = found.decision
    reason = (
        f"{len(decision.medoids)} local bases would have {decision.gain.gain:.2f} times less error than one at "
        f"n = {MODES}, from {decision.threshold:g} on they pay; this run used one"
    )
    return decision.to_dict() | {"local": False, "reason": reason}


def _none(reason: str) -> dict[str, object]:
    return {"local": False, "reason": reason}
