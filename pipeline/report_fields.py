"""Predictions beside references, from a run's predictions.npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from forebay.pipeline.errors import RunError
from forebay.pipeline.report_figures import LARGEST, LOSS, MEAN, Figure, profile
from forebay.pipeline.report_images import FIELD, SIGNED, Palette, Raster, picture, raster
from forebay.pipeline.summary_text import quantity

Arrays = Mapping[str, np.ndarray]

FEW = 16
"""Arrays of up to that many values without a coordinate are printed instead of drawn."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture or one diagram, with what a reader who cannot see it needs."""

    title: str
    alt: str
    image: str = ""
    low: str = ""
    high: str = ""
    gradient: str = ""
    figure: Figure | None = None
    ratio: float = 1.0
    """Width over height of the picture."""


@dataclass(frozen=True, slots=True)
class SampleView:
    """One validation sample: its numbers, and its panels."""

    label: str
    sample_id: int
    error: float
    time: float | None
    numbers: Sequence[tuple[str, str]] = ()
    panels: Sequence[Panel] = ()
    notes: Sequence[str] = ()


@dataclass(slots=True, eq=False)
class _Page:
    """What is collected for one sample."""

    numbers: list[tuple[str, str]] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sample_views(path: Path) -> list[SampleView]:
    """Best, median and worst sample of the file; none if it does not exist.

    Raises:
        RunError: the file is not what the learner writes; the text names it and says how to have it written anew.
    """
    if not path.exists():
        return []
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        grid = _Places(arrays)
        return [_view(arrays, grid, row) for row in range(len(arrays["labels"]))]
    except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
        raise RunError(
            f"{str(path)!r} does not hold predictions as the learner writes them ({error}); "
            f"delete the file and write the report again"
        ) from None


class _Places:
    """Where the values of a field lie: on a mesh, on a line, or on a grid."""

    def __init__(self, arrays: Arrays) -> None:
        prefix = "coordinates/"
        self.coordinates = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        triangles = arrays.get("triangles", self.coordinates.get("triangles"))
        self.triangles = None if triangles is None else triangles.astype(np.int64)
        self._rasters: dict[int, Raster] = {}

    def mesh(self, nodes: int) -> Raster | None:
        """Pixels of a mesh with that many nodes; None if there is none."""
        if nodes not in self._rasters:
            on_nodes = {n: a for n, a in self.coordinates.items() if a.shape == (nodes,)}
            named = [a for n, a in sorted(on_nodes.items()) if "node" in n or self.triangles is not None]
            if len(named) < 2:
                return None
            self._rasters[nodes] = raster(np.stack(named[:2], axis=1).astype(float), self.triangles)
        return self._rasters[nodes]

    def pixels(self, values: np.ndarray) -> np.ndarray | None:
        """A field as rows and columns of pixels; None if it is no picture."""
        if values.ndim == 2:
            return values
        if values.ndim == 3:
            return values[len(values) // 2]
        if values.ndim != 1:
            return None
        on_nodes = self.mesh(len(values))
        if on_nodes is not None:
            return on_nodes.of_nodes(values)
        if self.triangles is not None and len(values) == len(self.triangles):
            mesh = self.mesh(int(self.triangles.max()) + 1)
            return mesh.of_cells(values) if mesh is not None else None
        return None

    def are_vectors(self, values: np.ndarray) -> bool:
        """Is it one vector of two or three components at every node of a mesh?"""
        at_nodes = any(positions.shape == values.shape[:1] for positions in self.coordinates.values())
        return values.ndim == 2 and values.shape[1] in (2, 3) and at_nodes

    def line(self, size: int) -> tuple[np.ndarray, str]:
        """Positions along a line and their name."""
        for name, positions in self.coordinates.items():
            if positions.shape == (size,):
                return positions, name
        return np.arange(size), "index"

    def ratio(self, values: np.ndarray, pixels: np.ndarray) -> float:
        """Width over height of a picture: of the coordinates if there are some for both sides."""
        spans = []
        for size, name in zip(reversed(values.shape), ("x", "y"), strict=False):
            positions = self.coordinates.get(name)
            if values.ndim == 2 and positions is not None and positions.shape == (size,) and size > 1:
                spans.append(float(np.ptp(positions)) * size / (size - 1))
        if len(spans) == 2 and min(spans) > 0:
            return spans[0] / spans[1]
        return pixels.shape[1] / pixels.shape[0]


def _view(arrays: Arrays, places: _Places, row: int) -> SampleView:
    page = _Page()
    for name, values in arrays.items():
        kind, _, label = name.partition("/")
        if name == "parameters":
            _list_numbers(page, arrays, name, np.asarray(values[row], float))
        elif kind == "input":
            _show_input(page, places, arrays, label, np.asarray(values[row], float))
    for name, values in arrays.items():
        kind, _, label = name.partition("/")
        if kind == "reference":
            prediction = np.asarray(arrays[f"prediction/{label}"][row], float)
            _show_output(page, places, label, np.asarray(values[row], float), prediction)
    return SampleView(
        label=str(arrays["labels"][row]),
        sample_id=int(arrays["sample_ids"][row]),
        error=float(arrays["errors"][row]),
        time=float(arrays["time"][row]) if "time" in arrays else None,
        numbers=page.numbers,
        panels=page.panels,
        notes=page.notes,
    )


def _show_input(page: _Page, places: _Places, arrays: Arrays, label: str, values: np.ndarray) -> None:
    if places.are_vectors(values):
        label, values = f"|{label}|", np.linalg.norm(values, axis=1)
    pixels = places.pixels(values)
    few = values.ndim <= 1 and values.size <= FEW and pixels is None
    if few or label == "parameters":
        _list_numbers(page, arrays, label, values)
    elif pixels is not None:
        low, high = _range(values)
        page.panels.append(_image(f"input {label}", pixels, low, high, FIELD, places.ratio(values, pixels)))
    elif values.ndim == 1:
        x, x_name = places.line(values.size)
        figure = profile(x, [(f"input {label}", values, MEAN)], x_title=x_name, y_title=label)
        page.panels.append(Panel(f"input {label}", _range_text(f"input {label}", values), figure=figure))
    else:
        page.notes.append(_not_drawn(f"input {label}", values))


def _list_numbers(page: _Page, arrays: Arrays, label: str, values: np.ndarray) -> None:
    names = arrays.get("parameter_names", np.array([])) if label == "parameters" else np.array([])
    for place, value in enumerate(values.ravel()):
        page.numbers.append((str(names[place]) if place < len(names) else f"{label}[{place}]", quantity(float(value))))


def _show_output(page: _Page, places: _Places, label: str, reference: np.ndarray, prediction: np.ndarray) -> None:
    if places.are_vectors(reference):
        page.notes.append(f"{label} is a vector; its length is shown.")
        label, reference, prediction = (
            f"|{label}|",
            np.linalg.norm(reference, axis=1),
            np.linalg.norm(prediction, axis=1),
        )
    pixels, shown = places.pixels(reference), places.pixels(prediction)
    difference = prediction - reference
    if pixels is not None and shown is not None:
        low, high = _range(np.concatenate([reference.ravel(), prediction.ravel()]))
        largest = max(map(abs, _range(difference)))
        ratio = places.ratio(reference, pixels)
        page.panels.append(_image(f"reference {label}", pixels, low, high, FIELD, ratio))
        page.panels.append(_image(f"prediction {label}", shown, low, high, FIELD, ratio))
        page.panels.append(_image(f"prediction − reference {label}", shown - pixels, -largest, largest, SIGNED, ratio))
        if reference.ndim == 3:
            page.notes.append(f"{label} has {reference.ndim} axes; its middle slice along the first one is shown.")
    elif reference.ndim == 1:
        x, x_name = places.line(reference.size)
        both = [("reference", reference, LOSS), ("prediction", prediction, MEAN)]
        page.panels.append(
            Panel(
                f"reference and prediction {label}",
                f"{_range_text('reference', reference)}; {_range_text('prediction', prediction)}",
                figure=profile(x, both, x_title=x_name, y_title=label),
            )
        )
        error = profile(x, [("prediction − reference", difference, LARGEST)], x_title=x_name, y_title="difference")
        title = f"prediction − reference {label}"
        page.panels.append(Panel(title, _range_text("difference", difference), figure=error))
    else:
        page.notes.append(_not_drawn(label, reference))


def _image(title: str, pixels: np.ndarray, low: float, high: float, palette: Palette, ratio: float) -> Panel:
    return Panel(
        title=title,
        alt=_range_text(title, pixels),
        image=picture(pixels, low, high, palette),
        low=quantity(low),
        high=quantity(high),
        gradient=palette.css,
        ratio=ratio,
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)


def _range_text(title: str, values: np.ndarray) -> str:
    low, high = _range(values)
    return f"{title}, values from {quantity(low)} to {quantity(high)}"


def _not_drawn(label: str, values: np.ndarray) -> str:
    return f"{label} of shape {values.shape} is neither a line, a grid nor a mesh, so it is not drawn."
