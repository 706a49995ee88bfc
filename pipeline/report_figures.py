"""The curves of the report, as plotly figures in plain JSON values."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from forebay.pipeline.run_log import Line, RunLog, number
from forebay.pipeline.summary_types import Summary

Figure = dict[str, Any]

LOSS, MEAN, P99, LARGEST = "#8a94a6", "#0b5cad", "#d9730d", "#a3262a"
UNSEEN, SEEN = "#5aa9e6", "#b9d9f5"
MOST_POINTS = 1500
"""Points of one curve; a screen shows no more, and the file stays small."""


def error_curves(log: RunLog, *, against: str) -> Figure | None:
    """Training loss and validation errors against "batch" or "wall_s", both log-scaled in y; None without any."""
    curves = [_curve(log.train, against, "loss", "training loss", LOSS, width=1.5)]
    for key, name, colour in (("mean", "mean", MEAN), ("p99", "99th percentile", P99), ("max", "largest", LARGEST)):
        curve = _curve(log.validation, against, key, f"validation, {name}", colour, mode="lines+markers")
        if key != "mean" and curve:
            curve["line"] |= {"width": 1.5, "dash": "dot"}
        curves.append(curve)
    title = "batches" if against == "batch" else "wall time [s]"
    return _figure([c for c in curves if c], x=title, y="loss, relative error", log_y=True)


def buffer_occupancy(log: RunLog) -> Figure | None:
    """Frames in the buffer against wall time: not yet trained on, trained on, and the capacity; None without any."""
    areas = [
        _curve(log.train, "wall_s", key, name, colour, width=0.5)
        for key, name, colour in (("unseen", "not yet trained on", UNSEEN), ("seen", "trained on before", SEEN))
    ]
    areas = [area | {"stackgroup": "frames"} for area in areas if area]
    capacity = _curve(log.train, "wall_s", "capacity", "capacity", "#444444", width=1.5)
    if capacity:
        capacity["line"]["dash"] = "dash"
        areas.append(capacity)
    return _figure(areas, x="wall time [s]", y="frames")


def reuse_histogram(summary: Summary) -> Figure | None:
    """Frames by number of uses; None before the first evaluation."""
    counts = summary.reuse_histogram
    if not sum(counts):
        return None
    bars = {"type": "bar", "x": list(range(len(counts))), "y": list(counts), "marker": {"color": MEAN}}
    figure = _figure([bars | {"name": "frames"}], x="times used", y="frames")
    if figure is not None:
        figure["layout"]["showlegend"] = False
        figure["layout"]["xaxis"] |= {"dtick": 1} if len(counts) <= 16 else {}
    return figure


def profile(x: np.ndarray, curves: Sequence[tuple[str, np.ndarray, str]], *, x_title: str, y_title: str) -> Figure:
    """Fields on a line: each curve is (name, values (n,), colour)."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(name),
            "x": finite(x),
            "y": finite(values),
            "line": {"color": colour, "width": 2},
        }
        for name, values, colour in curves
    ]
    layout = _layout(x_title, y_title)
    layout["yaxis"]["rangemode"] = "normal"
    layout |= {"showlegend": len(curves) > 1, "height": 280}
    return {"data": traces, "layout": layout}


def finite(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Six significant digits, and None for what is not finite: strict JSON, and a gap in the curve."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _curve(
    lines: Sequence[Line], x: str, y: str, name: str, colour: str, *, width: float = 2.0, mode: str = "lines"
) -> Figure:
    shown = _spread(lines)
    values = [number(line, y) for line in shown]
    if not any(math.isfinite(value) for value in values):
        return {}
    return {
        "type": "scatter",
        "mode": mode,
        "name": html.escape(name),
        "x": finite([number(line, x) for line in shown]),
        "y": finite(values),
        "line": {"color": colour, "width": width},
        "marker": {"size": 5},
    }


def _spread(lines: Sequence[Line]) -> Sequence[Line]:
    if len(lines) <= MOST_POINTS:
        return lines
    places = np.unique(np.linspace(0, len(lines) - 1, MOST_POINTS).round().astype(int))
    return [lines[place] for place in places]


def _figure(traces: list[Figure], *, x: str, y: str, log_y: bool = False) -> Figure | None:
    if not traces:
        return None
    layout = _layout(x, y)
    if log_y:
        layout["yaxis"] |= {"type": "log", "rangemode": "normal", **_log_ticks([v for t in traces for v in t["y"]])}
    return {"data": traces, "layout": layout}


def _log_ticks(values: Sequence[float | None]) -> Figure:
    """Labels at decades, or at 1, 2, 5 of each, or finer: the coarsest choice that puts three into the range.

    Plotly's own ones drop the power (a bare "2" and "5"), and there are none at all on a range below a factor of two.
    """
    positive = [value for value in values if value is not None and value > 0]
    if not positive:
        return {}
    low, high = min(positive), max(positive)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), range(1, 10)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    else:
        ticks = _even_ticks(low, high) or ticks or [low]
    return {"tickvals": ticks, "ticktext": [f"{tick:.6g}" for tick in ticks]}


def _even_ticks(low: float, high: float) -> list[float]:
    """At least three multiples of 1, 2 or 5 times a power of ten in the range; none if it is of no width."""
    if high <= low * (1 + 1e-4):
        return []
    power = math.floor(math.log10(high - low))
    steps = [step * 10.0**exponent for exponent in (power, power - 1) for step in (5, 2, 1)]
    step = next(step for step in steps if math.floor(high / step) - math.ceil(low / step) >= 2)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _layout(x: str, y: str) -> Figure:
    axis = {"gridcolor": "#e6e9ef", "zeroline": False, "linecolor": "#c3cad6", "ticks": "outside", "automargin": True}
    return {
        "xaxis": axis | {"title": {"text": html.escape(x), "standoff": 8, "font": {"size": 13}}},
        "yaxis": axis | {"title": {"text": html.escape(y), "standoff": 8, "font": {"size": 13}}, "rangemode": "tozero"},
        "margin": {"l": 56, "r": 12, "t": 12, "b": 52},
        "height": 350,
        "legend": {"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "showlegend": True,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1c2430"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "#ffffff",
        "dragmode": False,
        "hovermode": "x unified",
    }
