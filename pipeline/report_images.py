"""Fields as pictures: palette PNG files in data URIs, written with zlib alone, and meshes sampled onto pixels."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

LARGEST = 192
"""Pixels of a picture's longer side; a finer field is shown by every second, third, ... value."""

_VIRIDIS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
_BLUE_RED = ("2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fddbc7", "f4a582", "d6604d", "b2182b")
_LEVELS = 255


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours at equal distances from low to high, as hexadecimal RGB."""

    anchors: tuple[str, ...]

    @property
    def css(self) -> str:
        """The palette as a CSS gradient from left to right."""
        return f"linear-gradient(to right, {', '.join('#' + colour for colour in self.anchors)})"

    def table(self) -> np.ndarray:
        """RGB of every level, uint8 (255, 3)."""
        colours = np.array([list(bytes.fromhex(colour)) for colour in self.anchors], float)
        at = np.linspace(0, len(colours) - 1, _LEVELS)
        channels = [np.interp(at, np.arange(len(colours)), colours[:, c]) for c in range(3)]
        return np.stack(channels, axis=1).round().astype(np.uint8)


FIELD = Palette(_VIRIDIS)
"""For fields: perceptually uniform, also for readers who do not tell red from green."""
SIGNED = Palette(_BLUE_RED)
"""For differences: white is zero."""


def picture(values: np.ndarray, low: float, high: float, palette: Palette) -> str:
    """A (rows, columns) array as a PNG data URI, first row at the bottom; what is not finite is transparent."""
    rows = thinned(np.asarray(values, float))[::-1]
    scale = (_LEVELS - 1) / (high - low) if high > low else 0.0
    level = np.clip((np.nan_to_num(rows, nan=low, posinf=low, neginf=low) - low) * scale, 0, _LEVELS - 1)
    index = np.where(np.isfinite(rows), level.round() + 1, 0).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(_png(index, palette.table())).decode()


def thinned(values: np.ndarray) -> np.ndarray:
    """Every k-th row and column, k = 1, 2, ... such that no side is longer than LARGEST."""
    step = -(-max(values.shape) // LARGEST)
    return values[::step, ::step]


def _png(index: np.ndarray, colours: np.ndarray) -> bytes:
    """A palette image, colour 0 transparent (PNG specification, third edition, https://www.w3.org/TR/png-3/)."""
    height, width = index.shape
    scanlines = np.concatenate([np.zeros((height, 1), np.uint8), index], axis=1)  # filter type 0 before each line
    palette = b"\xff\xff\xff" + colours.tobytes()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"tRNS", b"\x00"),
        (b"IDAT", zlib.compress(scanlines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """Where each pixel of a picture lies in a mesh.

    A pixel at p inside triangle t has barycentric weights λ₀ + λ₁ + λ₂ = 1 with p = Σ λᵢ xᵢ, so a piecewise linear
    field is shown exactly: u(p) = Σ λᵢ uᵢ.  Pixels outside the mesh, holes included, are transparent.
    """

    triangle: np.ndarray
    """int (rows, columns); -1 outside."""
    nodes: np.ndarray
    """int (rows, columns, 3)."""
    weights: np.ndarray
    """float (rows, columns, 3)."""

    def of_nodes(self, values: np.ndarray) -> np.ndarray:
        """A field with one value a node, as pixels."""
        return np.where(self.triangle >= 0, (self.weights * values[self.nodes]).sum(axis=-1), np.nan)

    def of_cells(self, values: np.ndarray) -> np.ndarray:
        """A field with one value a triangle, as pixels."""
        return np.where(self.triangle >= 0, values[self.triangle], np.nan)


def raster(points: np.ndarray, triangles: np.ndarray | None) -> Raster:
    """Sample a mesh of points (n, 2) and triangles (m, 3) onto pixels; without triangles by the nearest point."""
    low, high = points.min(axis=0), points.max(axis=0)
    pixel = float((high - low).max()) / LARGEST
    columns, rows = np.maximum(1, np.ceil((high - low) / pixel)).astype(int)
    if triangles is None:
        return _by_nearest(points, low, pixel, rows, columns)
    corner = points[triangles]
    first = np.clip(np.floor((corner.min(axis=1) - low) / pixel - 0.5).astype(int), 0, [columns - 1, rows - 1])
    last = np.clip(np.ceil((corner.max(axis=1) - low) / pixel - 0.5).astype(int), 0, [columns - 1, rows - 1])
    wide, tall = (last - first + 1).T
    owner = np.repeat(np.arange(len(triangles)), wide * tall)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(wide * tall) - wide * tall, wide * tall)
    i, j = first[owner, 0] + place % wide[owner], first[owner, 1] + place // wide[owner]
    weights = _barycentric(low + (np.stack([i, j], axis=1) + 0.5) * pixel, corner[owner])
    inside = (weights >= -1e-9).all(axis=1)
    found = Raster(np.full((rows, columns), -1), np.zeros((rows, columns, 3), int), np.zeros((rows, columns, 3)))
    at = j[inside], i[inside]
    found.triangle[at], found.weights[at] = owner[inside], weights[inside]
    found.nodes[at] = triangles[owner[inside]]
    return found


def _barycentric(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Weights (k, 3) of points (k, 2) in triangles (k, 3, 2); a degenerate triangle contains nothing."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    (ux, uy), (vx, vy), (px, py) = (b - a).T, (c - a).T, (points - a).T
    twice_area = ux * vy - uy * vx
    safe = np.where(twice_area == 0, 1.0, twice_area)
    second, third = (px * vy - py * vx) / safe, (ux * py - uy * px) / safe
    weights = np.stack([1 - second - third, second, third], axis=1)
    return np.where((twice_area == 0)[:, None], -1.0, weights)


def _by_nearest(points: np.ndarray, low: np.ndarray, pixel: float, rows: int, columns: int) -> Raster:
    tree = cKDTree(points)
    spacing = float(np.median(tree.query(points, k=2)[0][:, 1]))
    j, i = np.indices((rows, columns))
    distance, nearest = tree.query(low + (np.stack([i, j], axis=-1) + 0.5) * pixel)
    return Raster(
        triangle=np.where(distance <= max(1.5 * spacing, pixel), 0, -1),
        nodes=np.repeat(nearest[..., None], 3, axis=-1),
        weights=np.broadcast_to(np.array([1.0, 0.0, 0.0]), (rows, columns, 3)),
    )
