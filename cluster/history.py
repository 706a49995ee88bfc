"""What earlier attempts of a run left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from forebay.pipeline.journal import read_events, read_journal, records_from_columns
from forebay.pipeline.messages import BlockKey
from forebay.pipeline.records import Care, SolveRecord


@dataclass(frozen=True, slots=True)
class History:
    """Empty for a new run."""

    attempts: int = 0
    stored: Mapping[BlockKey, tuple[Sequence[SolveRecord], np.ndarray]] = field(default_factory=dict)
    """Durable blocks with their records and parameters."""
    ingested: frozenset[BlockKey] = frozenset()
    """Training blocks whose frames the latest checkpoint accounts for."""
    care: Mapping[BlockKey, Care] = field(default_factory=dict)
    """What lost solvers have taught about blocks that are to be solved."""
    training_ended: bool = False
    complete: bool = False
    wall_s: float = 0.0


def read_history(run: Path) -> History:
    """Read journal, metrics and the latest checkpoint's account of the data."""
    stored: dict[BlockKey, tuple[Sequence[SolveRecord], np.ndarray]] = {}
    care: dict[BlockKey, Care] = {}
    attempts = 0
    training_ended = complete = False
    for line in read_events(run / "journal.jsonl"):
        match line["event"]:
            case "run_started":
                attempts += 1
            case "block_requested" if "draws" in line:
                draws = {int(sample): draw for sample, draw in line["draws"].items()}
                care[line["split"], line["chunk"]] = Care(draws, frozenset(line["given_up"]))
            case "block_stored":
                key: BlockKey = (line["split"], line["chunk"])
                records = records_from_columns(line["records"])
                stored[key] = (records, np.asarray(line["parameters"], float).reshape(len(records), -1))
            case "training_ended":
                training_ended = line["batches"] > 0
            case "run_finished":
                complete = line["status"] == "complete"
    return History(attempts, stored, _ingested(run), care, training_ended, complete, _wall(run))


def _ingested(run: Path) -> frozenset[BlockKey]:
    from forebay.learners.weights import latest_checkpoint

    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        return frozenset()
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return frozenset(("train", chunk) for chunk in state["extra"]["ingested_chunks"])


def _wall(run: Path) -> float:
    return max((line["wall_s"] for line in read_journal(run / "metrics.jsonl") if "wall_s" in line), default=0.0)
