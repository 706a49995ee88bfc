"""The pictures of docs/solids.md: where solids yield, what a cubature selects, and what error estimates are worth.

Simulates the necked bar and the blade on coarse meshes, trains a reduced model of the bar on four simulations, and
judges it on held-out ones.  The pictures are SVG, written by hand: faces of hexahedra on the boundary, orthographic,
the nearest drawn last.

Run it: `python examples/solid_pictures.py --output docs/pictures` (about a minute).
"""

import argparse
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.report_images import FIELD
from forebay.solvers.fem.mesh_arrays import MeshArrays
from forebay.solvers.fem.solid import SolidModel
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.blade import Blade
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.basis import Run
from forebay.solvers.rom.errors import true_errors
from forebay.solvers.rom.offline import Origin, Reduced, build
from forebay.solvers.rom.online import ReducedModel
from forebay.solvers.rom.package import RomPackage

# Traction [MPa], temperature of the hot spot [°C], its position [mm], factor of the yield stress.
TRAINING = ((150, 540, 22, 1.0), (175, 700, 19.5, 1.0), (200, 450, 18, 1.0), (220, 620, 20.5, 1.0))
HELD_OUT = ((170, 600, 20, 1.0), (210, 520, 21, 1.0), (190, 500, 19, 1.0), (160, 480, 18.5, 1.0), (205, 660, 21.5, 1.0))
PULLED = (235, 780, 23, 0.9)
# Speed [rpm], pressure [MPa], temperature [°C], height of the hottest section [mm], factor of the yield stress.
FLOWN = (13_000, 1.0, 850, 30, 0.9)

HEXAHEDRON = np.array([[0, 4, 6, 2], [1, 3, 7, 5], [0, 1, 5, 4], [2, 6, 7, 3], [0, 2, 3, 1], [4, 5, 7, 6]])
"""Faces of a cell, counter-clockwise as seen from outside."""
FONT = 'font-family="sans-serif" font-size="13"'
BLUE, ORANGE = "#0b5cad", "#c2570c"
ERRORS = (1e-4, 1.0)
"""Ends of both axes of the estimates; what is smaller is drawn at the edge."""
BAR_STRETCH, BLADE_STRETCH = 30, 10
"""By which displacements are exaggerated."""
BESIDE = np.array([38.0, -22.0, -26.0])
"""Where the blade's upper half is put, relative to where it was, [mm]."""


@dataclass(frozen=True)
class View:
    """Orthographic, z upwards; `azimuth` turns the eye from the x axis towards the y axis, both angles in degrees."""

    azimuth: float
    elevation: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """To the right, upwards and towards the eye, (n, 3)."""
        angle, height = np.deg2rad([self.azimuth, self.elevation])
        right = np.array([-np.sin(angle), np.cos(angle), 0.0])
        eye = np.array([np.cos(height) * np.cos(angle), np.cos(height) * np.sin(angle), np.sin(height)])
        return points @ np.column_stack([right, np.cross(eye, right), eye])


@dataclass(frozen=True)
class Paper:
    """Where projected points lie in a picture, [px]."""

    scale: float
    left: float
    top: float
    width: float
    height: float

    @classmethod
    def around(cls, points: np.ndarray, width: float, margin: float, below: float) -> "Paper":
        """All points, with room below for a legend."""
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        scale = (width - 2 * margin) / (high - low)[0]
        height = scale * (high - low)[1] + 2 * margin + below
        return cls(scale, margin - scale * low[0], margin + scale * high[1], width, height)

    def place(self, points: np.ndarray) -> np.ndarray:
        return np.column_stack([self.left + self.scale * points[:, 0], self.top - self.scale * points[:, 1]])


def outside(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces on the boundary (f, 4), and the cell of each (f,)."""
    faces = cells[:, HEXAHEDRON].reshape(-1, 4)
    _, first, counts = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_counts=True)
    chosen = np.sort(first[counts == 1])
    return faces[chosen], chosen // len(HEXAHEDRON)


def visible(places: np.ndarray, depths: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Numbers of the faces that look at the eye, the farthest first."""
    corners = places[faces]
    one, other = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    facing = np.flatnonzero(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0] < 0)  # pixels count downwards
    return facing[np.argsort(depths[faces[facing]].mean(axis=1), kind="stable")]


def polygon(corners: np.ndarray, colour: str) -> str:
    return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in corners)}Z" fill="{colour}"/>'


def colours(values: np.ndarray, high: float) -> list[str]:
    """Of values from 0 to `high`."""
    table = FIELD.table()
    levels = np.clip(values / high * (len(table) - 1), 0, len(table) - 1).round().astype(int)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in table[levels]]


def colour_bar(paper: Paper, high: float, title: str) -> list[str]:
    """From 0 to `high`, at the lower edge."""
    x, y, length = 20, paper.height - 26, 200
    stops = [f'<stop offset="{k / 8:g}" stop-color="{c}"/>' for k, c in enumerate(colours(np.arange(9.0), 8))]
    return [
        f'<defs><linearGradient id="bar">{"".join(stops)}</linearGradient></defs>',
        f'<rect x="{x}" y="{y}" width="{length}" height="12" fill="url(#bar)"/>',
        f'<text x="{x}" y="{y - 6}" {FONT}>{title}</text>',
        f'<text x="{x}" y="{y + 25}" {FONT}>0</text>',
        f'<text x="{x + length}" y="{y + 25}" text-anchor="middle" {FONT}>{100 * high:.2g} %</text>',
    ]


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def opened(mesh: MeshArrays, height: float, shift: np.ndarray) -> MeshArrays:
    """Cut in two between cells near z = `height`, what is above set aside by a vector; all nodes come twice."""
    above = mesh.nodes[mesh.cells][:, :, 2].mean(axis=1) > height
    cells = mesh.cells + len(mesh.nodes) * above[:, None]
    return MeshArrays(np.vstack([mesh.nodes, mesh.nodes + shift]), cells, mesh.shape, mesh.degree, {})


def solid_picture(mesh: MeshArrays, nodes: np.ndarray, p: np.ndarray, view: View, width: int, title: str) -> str:
    """The solid with its nodes at (n, 3), faces coloured by p (c,) of their cells."""
    projected = view.project(nodes)
    paper = Paper.around(projected[np.unique(mesh.cells)], width, 20, 56)
    faces, cells = outside(mesh.cells)
    places, high = paper.place(projected), float(p.max())
    fills = colours(p[cells], high)
    shown = [polygon(places[faces[k]], fills[k]) for k in visible(places, projected[:, 2], faces)]
    group = '<g stroke="#555" stroke-width="0.3" stroke-linejoin="round">'
    return svg(paper.width, paper.height, [group, *shown, "</g>", *colour_bar(paper, high, title)])


def cubature_picture(mesh: MeshArrays, package: RomPackage, view: View, width: int) -> str:
    """The points of a reduced model in its solid, circles with an area in proportion to their weight."""
    projected, points = view.project(mesh.nodes), view.project(package.positions)
    paper = Paper.around(projected, width, 20, 50)
    faces, _ = outside(mesh.cells)
    places = paper.place(projected)
    shown = [polygon(places[faces[k]], "#f2f4f7") for k in visible(places, projected[:, 2], faces)]
    radii = 11 * np.sqrt(package.weights / package.weights.max())
    circles = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{max(radius, 2.5):.1f}" fill="{BLUE if radius else ORANGE}"/>'
        for (x, y), radius in zip(paper.place(points), radii, strict=True)
    ]
    everywhere = mesh.cells.size
    legend = (
        f"{package.force_points} of {everywhere:,} quadrature points integrate, area as their weight",
        f"{package.points - package.force_points} more help to reconstruct the plastic strain",
    )
    lines = [
        f'<text x="20" y="{paper.height - 34 + 20 * k:.0f}" {FONT} fill="{colour}">{line}</text>'
        for k, (line, colour) in enumerate(zip(legend, (BLUE, ORANGE), strict=True))
    ]
    order = np.argsort(points[:, 2])
    group = '<g stroke="#c3c9d4" stroke-width="0.5">'
    dots = ['</g><g fill-opacity="0.75">', *(circles[k] for k in order), "</g>"]
    return svg(paper.width, paper.height, [group, *shown, *dots, *lines])


def estimate_picture(steps: np.ndarray) -> str:
    """Estimates against true errors of held-out steps, (k, 4): displacement and p estimated, then true."""
    size, left, top = 400, 70, 20
    (low, high), bottom = np.log10(ERRORS), top + size

    def place(errors: np.ndarray) -> np.ndarray:
        return size * (np.log10(np.clip(errors, *ERRORS)) - low) / (high - low)

    parts = [f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="#333"/>']
    for power in np.arange(low, high + 1):
        at, label = size * (power - low) / (high - low), f"{10.0 ** (power + 2):g} %"
        parts += [
            f'<path d="M{left + at:.0f} {top}V{bottom}M{left} {bottom - at:.0f}h{size}" stroke="#ddd"/>',
            f'<text x="{left + at:.0f}" y="{bottom + 18}" text-anchor="middle" {FONT}>{label}</text>',
            f'<text x="{left - 6}" y="{bottom - at + 4:.0f}" text-anchor="end" {FONT}>{label}</text>',
        ]
    parts.append(f'<path d="M{left} {bottom}l{size} {-size}" stroke="#333" stroke-dasharray="5 4"/>')
    for row, (name, colour) in enumerate((("displacement", BLUE), ("plastic strain", ORANGE))):
        estimated, true = steps[steps[:, 2 + row] > 0][:, [row, 2 + row]].T
        parts.append(f'<g fill="{colour}" fill-opacity="0.6">')
        dots = zip(left + place(true), bottom - place(estimated), strict=True)
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in dots]
        text = f"{name}: {100 * np.mean(estimated >= true):.0f} % above the diagonal"
        at = f'x="{left + size - 10}" y="{bottom - 36 + 20 * row}" text-anchor="end"'
        parts.append(f'</g><text {at} {FONT} fill="{colour}">{text}</text>')
    turned = f'transform="translate(16 {top + size / 2}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text x="{left + size / 2}" y="{bottom + 42}" text-anchor="middle" {FONT}>true error</text>')
    parts.append(f"<text {turned} {FONT}>estimated error</text>")
    return svg(left + size + 30, bottom + 54, parts)


class Simulations:
    """Full simulations of one problem on this process."""

    def __init__(self, problem: Any) -> None:
        petsc()
        self.problem = problem
        self.model: SolidModel = problem.model(importlib.import_module("mpi4py.MPI").COMM_SELF)

    def history(self, parameters: Sequence[float]) -> Any:
        return self.problem.history({"parameters": np.array(parameters, float)})

    def run(self, parameters: Sequence[float]) -> Run:
        history = self.history(parameters)
        return Run(history, self.model.run(history))

    def deformed(self, parameters: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Displacement (n, 3) [mm] and mean p of every cell (c,), both when the displacement is largest."""
        found = self.run(parameters).trajectory
        at = int(np.abs(found.displacement).max(axis=1).argmax())
        dofs, points = np.argsort(self.model.dof_ids), np.argsort(self.model.point_ids)
        fields = self.problem.fields(found.displacement[at : at + 1, dofs], found.p[at : at + 1, points])
        return fields["u"][0], fields["p"][0]

    def judged(self, reduced: Reduced, parameters: Sequence[float]) -> np.ndarray:
        """Estimated and true errors of every reduced step, (s, 4)."""
        run = self.run(parameters)
        found = ReducedModel(reduced.package, self.problem.law).run(run.history)
        return np.hstack([found.errors, true_errors(self.model, reduced.basis, run, found)])


def mesh_of(problem: Any) -> MeshArrays:
    """As the data set holds it."""
    values = {coordinate.name: np.asarray(coordinate.values) for coordinate in problem.schema.coordinates}
    nodes = np.column_stack([values[f"node_{axis}"] for axis in "xyz"])
    return MeshArrays(nodes, values["hexahedra"], "hexahedron", 1, {})


def bar_pictures(cells: tuple[int, int, int], steps: int) -> dict[str, str]:
    """The deformed bar, the points of its reduced model, and what the estimates of that are worth."""
    bar, view = Simulations(NeckedBar(cells=cells, steps=steps, frames=4)), View(-65, 28)
    mesh = mesh_of(bar.problem)
    displacement, p = bar.deformed(PULLED)
    reduced = build(bar.model, [bar.run(values) for values in TRAINING], Origin("necked_bar", bar.problem.law))
    judged = np.vstack([bar.judged(reduced, values) for values in HELD_OUT])
    nodes, title = mesh.nodes + BAR_STRETCH * displacement, f"plastic strain; displacements × {BAR_STRETCH}"
    return {
        "necked_bar": solid_picture(mesh, nodes, p, view, 640, title),
        "cubature": cubature_picture(mesh, reduced.package, view, 640),
        "estimates": estimate_picture(judged),
    }


def blade_picture(layers: int, steps: int) -> str:
    """The deformed blade, cut open at its hottest section."""
    blade = Simulations(Blade(layers=layers, steps=steps, frames=4))
    displacement, p = blade.deformed(FLOWN)
    mesh = opened(mesh_of(blade.problem), FLOWN[3], BESIDE)
    nodes = mesh.nodes + BLADE_STRETCH * np.vstack([displacement, displacement])
    title = f"plastic strain; cut at z = {FLOWN[3]} mm; displacements × {BLADE_STRETCH}"
    return solid_picture(mesh, nodes, p, View(-120, 40), 560, title)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/solids.md.")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="folder for the SVG files")
    parser.add_argument("--coarse", action="store_true", help="smallest meshes, for a trial")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    pictures = bar_pictures((6, 2, 2), 8) if options.coarse else bar_pictures((18, 6, 6), 24)
    pictures["blade"] = blade_picture(2, 4) if options.coarse else blade_picture(12, 12)
    for name, picture in pictures.items():
        path = options.output / f"{name}.svg"
        path.write_text(picture, encoding="utf-8")
        print(f"{path}: {len(picture) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
