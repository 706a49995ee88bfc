"""The report: one HTML file that holds everything it shows and asks no other host for anything.

Whatever a study, a problem or a data set names may come from strangers, so every text passes through autoescaping, and
the page carries a content security policy (https://www.w3.org/TR/CSP3/) that lets a browser run the two scripts whose
hashes it lists and load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from forebay.pipeline.journal import is_being_written
from forebay.pipeline.report_fields import sample_views
from forebay.pipeline.report_figures import Figure, buffer_occupancy, error_curves, reuse_histogram
from forebay.pipeline.run_log import RunLog, read_run
from forebay.pipeline.summary import Summary, summarise_log, what_reuse_means
from forebay.pipeline.summary_text import NAMES, duration, percent, plural, quantity
from forebay.pipeline.toml import to_toml

_DRAW = """
for (const place of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displayModeBar: false, showTips: false});
}
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """A diagram with its caption."""

    title: str
    caption: str
    figure: Figure


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, from whatever the run has recorded so far; its path.

    Raises:
        RunError: the folder holds no run, or a file in it is damaged.
    """
    log = read_run(run)
    summary = summarise_log(log, writing=is_being_written(run / "journal.jsonl"))
    scripts = _scripts()
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            reuse=what_reuse_means(summary),
            curves=_error_curves(log),
            flow=_flow_curves(log, summary),
            samples=sample_views(run / "predictions.npz"),
            study=to_toml(log.study.get("study", {})),
            problem=str(log.study.get("problem_summary", "")),
            provenance=_provenance(log),
            scripts=scripts,
            policy=_policy(scripts),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            stage_names=NAMES,
        )
    )
    path = run / "report.html"
    temporary = run / f".report.html.{os.getpid()}"
    temporary.write_bytes(page.encode("utf-8", "replace"))
    os.replace(temporary, path)
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("forebay.pipeline"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "percent": lambda share: _unbroken(percent(share)),
        "quantity": quantity,
        "duration": lambda seconds: _unbroken(duration(seconds)),
        "plural": plural,
        "json": _json_for_html,
        "code": _code,
        "known": math.isfinite,
    }
    return environment


def _error_curves(log: RunLog) -> list[Curve]:
    loss = log.option("learner", "loss") or "the study's loss"
    caption = f"Training loss ({loss}, mean of some batches) and relative L2 error over the validation set"
    found = [
        (f"Error against {name}", f"{caption}, against {name}.", error_curves(log, against=key))
        for key, name in (("batch", "batches"), ("wall_s", "wall time"))
    ]
    return [Curve(title, text, figure) for title, text, figure in found if figure]


def _flow_curves(log: RunLog, summary: Summary) -> list[Curve]:
    occupancy = "Frames that the learner holds: what came in and was not yet trained on, and what may be used again."
    uses = f"How many frames were trained on how often; {summary.reuse_mean:.2f} times on average."
    found = [
        ("Buffer occupancy", occupancy, buffer_occupancy(log)),
        ("Reuse", uses, reuse_histogram(summary)),
    ]
    return [Curve(title, text, figure) for title, text, figure in found if figure]


def _provenance(log: RunLog) -> list[tuple[str, str]]:
    versions: Mapping[str, Any] = log.study.get("versions", {})
    hardware: Mapping[str, Any] = log.study.get("hardware", {})
    rows = [("commit", str(log.study.get("commit") or "not recorded"))]
    rows += [(str(name), str(value)) for name, value in versions.items()]
    rows += [(str(name).replace("_", " "), str(value)) for name, value in hardware.items()]
    return rows


def _scripts() -> tuple[Markup, Markup]:
    from plotly.offline import get_plotlyjs

    # Both are ours or plotly's, not a stranger's, and neither contains "</script".
    return Markup(get_plotlyjs()), Markup(_DRAW)


def _policy(scripts: tuple[Markup, ...]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def _code(text: str) -> Markup:
    """Words in backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text)))


def _unbroken(text: str) -> str:
    """A number and its unit stay on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _json_for_html(value: Any) -> Markup:
    """JSON that no HTML parser can mistake for the end of its script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
