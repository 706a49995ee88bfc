"""What `forebay status --watch` knows of a run: the lines of its journal and metrics in, figures and words out."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forebay.pipeline.dataset_trust import printable
from forebay.pipeline.run_log import Line, number
from forebay.pipeline.summary_stages import BUSY_ENOUGH, ratio
from forebay.pipeline.summary_text import NAMES, duration, percent, plural, quantity
from forebay.pipeline.summary_types import StageName

WINDOW_S = 60.0
"""What "now" means where blocks come often enough."""
WINDOW_BLOCKS = 8
"""Blocks that a window holds at least: where each takes minutes, one more or less in a minute says nothing."""
WINDOW_MOST_S = 3600.0
MARK_EVERY_S = 0.5
SILENT_S = 10.0
"""Without a line, after which it is said; a run that is under way writes one every two seconds."""
START_S = 60.0
"""The same while actors are being started."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Totals at one time."""

    t: float
    solved: int
    blocks: int
    batch: int
    busy_s: Mapping[StageName, float]
    """Of one solver, the writer and the learner."""


@dataclass(slots=True)
class Window:
    """The recent past, from which speeds follow."""

    _marks: deque[Mark] = field(default_factory=deque, init=False)

    def clear(self) -> None:
        """Forget: the totals begin anew."""
        self._marks.clear()

    def add(self, mark: Mark) -> None:
        """The totals have changed."""
        marks = self._marks
        if len(marks) > 1 and mark.t - marks[-2].t < MARK_EVERY_S:
            marks.pop()
        marks.append(mark)
        while len(marks) > 2 and self._enough_since(marks[1]):
            marks.popleft()

    def _enough_since(self, mark: Mark) -> bool:
        last = self._marks[-1]
        age_s = last.t - mark.t
        return age_s >= WINDOW_MOST_S or (age_s >= WINDOW_S and last.blocks - mark.blocks >= WINDOW_BLOCKS)

    def speeds(self, now: float) -> Speeds | None:
        """Means from the first mark until now; None while there is a single mark."""
        if len(self._marks) < 2:
            return None
        first, last = self._marks[0], self._marks[-1]
        seconds = max(now, last.t) - first.t
        return Speeds(
            solves_per_s=ratio(last.solved - first.solved, seconds),
            batches_per_s=ratio(last.batch - first.batch, seconds),
            busy={name: min(1.0, ratio(last.busy_s[name] - first.busy_s[name], seconds)) for name in last.busy_s},
        )


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of the window."""

    solves_per_s: float
    batches_per_s: float
    busy: Mapping[StageName, float]
    """Share of the time that one solver, the writer, the learner worked."""


@dataclass(slots=True)
class RunState:
    """Takes lines in the order of their time; `now` of its methods is by the same clock as theirs."""

    study: Mapping[str, Any]
    attempts: int = field(default=0, init=False)
    ended: tuple[str, str] | None = field(default=None, init=False)
    """Status and reason, once the latest attempt has ended."""
    newest_t: float = field(default=0.0, init=False)
    _started_t: float = field(default=0.0, init=False)
    _solvers: int = field(default=1, init=False)
    _away: set[str] = field(default_factory=set, init=False)
    """Solvers that are lost and not yet back."""
    _blocks: set[tuple[str, int]] = field(default_factory=set, init=False)
    _solved: Counter[str] = field(default_factory=Counter, init=False)
    """Samples by split."""
    _outcomes: Counter[str] = field(default_factory=Counter, init=False)
    _lost: Counter[str] = field(default_factory=Counter, init=False)
    _phase: str = field(default="starting", init=False)
    _solving_s: float = field(default=0.0, init=False)
    """Of all solvers, for training samples."""
    _evaluating_s: float = field(default=0.0, init=False)
    _best: float = field(default=math.inf, init=False)
    _latest: dict[str, Line] = field(default_factory=dict, init=False)
    """The last line of each kind of metrics."""
    _window: Window = field(default_factory=Window, init=False)

    def take(self, line: Line) -> None:
        """One line of journal.jsonl or metrics.jsonl."""
        self.newest_t = max(self.newest_t, line["t"])
        match line["event"]:
            case "run_started":
                self._begin(line)
            case "block_requested" if line["split"] == "train" and self._phase in ("starting", "validation"):
                self._phase = "streaming"
                self._window.clear()  # what the start took says nothing of speeds
            case "block_requested" if self._phase == "starting":
                self._phase = "validation"
            case "block_stored":
                self._store(line)
            case "solver_ready":
                self._away.discard(line["solver"])
            case "solver_lost" | "writer_lost" | "learner_lost" | "block_lost":
                self._lose(line)
            case "production_ended":
                self._phase = "training on"
            case "training_ended":
                self._phase = "solving on" if self._phase == "streaming" else "ending"
            case "stop_requested":
                self._phase = "stopping"
            case "run_finished":
                self.ended = (line["status"], str(line.get("reason", "")))
            case "train" | "flow" | "validation":
                self._measure(line)
        if self._phase != "starting":
            self._window.add(self._mark())

    def rows(self, now: float) -> list[tuple[str, str]]:
        """What a terminal shows, as labels and values."""
        speeds = self._window.speeds(now)
        rows = [
            ("run", self._headline(now)),
            ("samples", self._samples("train", self._option("samples"))),
            ("validation set", self._samples("validation", self._option("validation", "samples"))),
            ("outcomes", ", ".join(f"{printable(name)} {count:,}" for name, count in self._outcomes.most_common())),
            ("solvers", self._solver_words(speeds)),
            ("buffer", self._ring_words()),
            ("training", self._training_words(speeds)),
            ("validation", self._error_words()),
            ("bottleneck", _bottleneck(speeds) if self._phase != "starting" else ""),
            ("lost", ", ".join(f"{count} {kind}{plural(count)}" for kind, count in self._lost.items())),
            ("warning", self._spilling_words()),
            ("time left", self._time_left(speeds, now)),
        ]
        if self.attempts and self.ended is None and now - self.newest_t > self._patience_s:
            rows.append(("silent", f"nothing was heard of the run for {duration(now - self.newest_t)}"))
        return [(label, value) for label, value in rows if value]

    def line(self, now: float) -> str:
        """The same for a log file, on one line."""
        values = dict(self.rows(now))
        labels = (
            "run",
            "samples",
            "solvers",
            "buffer",
            "training",
            "validation",
            "bottleneck",
            "lost",
            "time left",
            "silent",
        )
        return "; ".join(f"{label}: {values[label]}" for label in labels if label in values)

    def remaining_s(self, speeds: Speeds | None) -> float:
        """Until solving and training have ended, whichever takes longer, at the present speed; NaN if unknown."""
        if speeds is None or self._phase == "starting":
            return math.nan
        left = []
        if self._phase != "solving on":
            batches = self._option("learner", "batches") or 0
            left.append(ratio(max(0, batches - self._batch), speeds.batches_per_s))
        if self._phase in ("streaming", "solving on"):
            left.append(ratio(max(0, (self._option("samples") or 0) - self._solved["train"]), speeds.solves_per_s))
        return max(left) if left and all(map(math.isfinite, left)) else math.nan

    # -- lines in ------------------------------------------------------------------------------------------------------

    def _begin(self, line: Line) -> None:
        self.attempts += 1
        self.ended = None
        self._started_t, self._solvers, self._phase = line["t"], max(1, line["solvers"]), "starting"
        self._away.clear()
        self._latest.pop("flow", None)
        self._window.clear()

    def _store(self, line: Line) -> None:
        key = (line["split"], line["chunk"])
        if key in self._blocks:
            return
        self._blocks.add(key)
        outcomes = line["records"]["outcome"]
        self._solved[key[0]] += len(outcomes)
        self._outcomes.update(outcomes)
        if key[0] == "train":
            self._solving_s += number(line, "seconds")

    def _lose(self, line: Line) -> None:
        kind = line["event"].removesuffix("_lost")
        self._lost[kind] += 1
        if kind == "solver":
            self._away.add(line["solver"])

    def _measure(self, line: Line) -> None:
        if line["event"] == "train" and line["batch"] <= self._batch:
            self._window.clear()  # a learner that was lost goes on from its checkpoint, with the counters of then
        self._latest[line["event"]] = line
        if line["event"] == "validation":
            self._evaluating_s += number(line, "seconds")
            self._best = min(self._best, number(line, "mean"))

    def _mark(self) -> Mark:
        train, flow = self._latest.get("train", {}), self._latest.get("flow", {})
        learning = sum(float(train.get(key, 0.0)) for key in ("draw_s", "step_s")) + self._evaluating_s
        busy: dict[StageName, float] = {
            "solvers": self._solving_s / self._solvers,
            "writer": float(flow.get("writer_busy_s", 0.0)),
            "learner": learning,
        }
        return Mark(self.newest_t, self._solved["train"], len(self._blocks), self._batch, busy)

    # -- words out -----------------------------------------------------------------------------------------------------

    @property
    def _batch(self) -> int:
        return int(self._latest.get("train", {}).get("batch", 0))

    @property
    def _patience_s(self) -> float:
        return START_S if self._phase == "starting" else SILENT_S

    def _option(self, *path: str) -> Any:
        node: Any = self.study
        for part in path:
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def _headline(self, now: float) -> str:
        name = printable(str(self._option("name") or "unnamed"))
        if not self.attempts:
            return f"{name}: waiting for it to begin"
        attempt = f", attempt {self.attempts}" if self.attempts > 1 else ""
        if self.ended is not None:
            status, reason = self.ended
            return f"{name}: {printable(status)}{f' ({printable(reason)})' if reason else ''}{attempt}"
        return f"{name}: {self._phase}{attempt}, {duration(max(0.0, now - self._started_t))}"

    def _samples(self, split: str, requested: int | None) -> str:
        return f"{self._solved[split]:,} of {requested or 0:,} solved" if self.attempts else ""

    def _solver_words(self, speeds: Speeds | None) -> str:
        if not self.attempts or self._phase == "training on":
            return ""
        there = self._solvers - len(self._away)
        words = f"{there} of {self._solvers} there" if self._away else f"{there}"
        return words + (f", {quantity(speeds.solves_per_s)} solves/s" if speeds else "")

    def _ring_words(self) -> str:
        line = self._latest.get("train")
        if line is None:
            return ""
        held = line["unseen"] + line["seen"]
        fill = percent(ratio(held, line["capacity"]))
        return f"{held:,} of {line['capacity']:,} frames ({fill}), {line['unseen']:,} not drawn yet"

    def _training_words(self, speeds: Speeds | None) -> str:
        line = self._latest.get("train")
        if line is None:
            return ""
        speed = f", {quantity(speeds.batches_per_s)} batches/s" if speeds and self._phase != "solving on" else ""
        planned = self._option("learner", "batches")
        return f"batch {self._batch:,} of {planned or 0:,}{speed}, loss {quantity(number(line, 'loss'))}"

    def _error_words(self) -> str:
        line = self._latest.get("validation")
        return f"relative L2 {percent(number(line, 'mean'))} (best {percent(self._best)})" if line else ""

    def _spilling_words(self) -> str:
        spilled = int(self._latest.get("flow", {}).get("spilled_bytes", 0))
        return f"Ray spilled {spilled / 2**20:.0f} MiB to disk: lower run.blocks_in_flight" if spilled else ""

    def _time_left(self, speeds: Speeds | None, now: float) -> str:
        left = self.remaining_s(speeds)
        if self.ended is not None or not math.isfinite(left):
            return ""
        return f"about {duration(left)}, until {time.strftime('%a %H:%M:%S', time.localtime(now + left))}"


def _bottleneck(speeds: Speeds | None) -> str:
    """Who works most of the time now, and how much the others do."""
    if speeds is None:
        return ""
    busiest, *others = sorted(speeds.busy, key=lambda name: -speeds.busy[name])
    rest = ", ".join(f"{NAMES[name]} {percent(speeds.busy[name])}" for name in others)
    if speeds.busy[busiest] < BUSY_ENOUGH:
        return f"none: all wait more than they work ({NAMES[busiest]} {percent(speeds.busy[busiest])}, {rest})"
    return f"{NAMES[busiest]}, busy {percent(speeds.busy[busiest])} of the time ({rest})"
