"""Unstructured triangle meshes from a signed distance function, without an external mesher.

Source: P.-O. Persson and G. Strang, "A Simple Mesh Generator in MATLAB", SIAM Review 46 (2004), 329-345,
doi 10.1137/S0036144503429121.  Differs from it: uniform element size only, so no random rejection and the same mesh
every time; a bounded number of iterations; nodes that ended in no triangle are dropped; the result is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay, cKDTree

from forebay.pipeline.errors import ProblemError

Distance = Callable[[np.ndarray], np.ndarray]
"""Signed distances (n,) of points (n, 2): negative inside, zero on the boundary, exact near it."""

_STEP = 0.2
_PRESSURE = 1.2
"""Bars want to be this much longer than they can, so that points spread to the boundary."""
_RETRIANGULATE = 0.1
_SETTLED = 2e-3
_MAX_STEPS = 400
_LEAST_QUALITY = 0.3
_OFF_BOUNDARY = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class TriangleMesh:
    """Triangles over a plane domain."""

    nodes: np.ndarray
    """Positions (n, 2), float64."""
    triangles: np.ndarray
    """Node numbers (t, 3), int64, counter-clockwise."""
    boundary: np.ndarray
    """Sorted numbers of the nodes on the boundary, holes included."""

    @property
    def areas(self) -> np.ndarray:
        """Area of every triangle (t,)."""
        return _areas(self.nodes, self.triangles)

    @property
    def quality(self) -> np.ndarray:
        """4√3 area / Σ edge², shape (t,): 1 for an equilateral triangle, 0 for a flat one."""
        corners = self.nodes[self.triangles]
        edges = corners - np.roll(corners, 1, axis=1)
        return 4 * np.sqrt(3) * self.areas / (edges**2).sum(axis=(1, 2))


def rectangle(width: float, height: float) -> Distance:
    """Distance to [0, width] × [0, height]; near corners outside it is only a lower bound, which the method allows."""

    def distance(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return -np.minimum(np.minimum(x, width - x), np.minimum(y, height - y))

    return distance


def circle(x: float, y: float, radius: float) -> Distance:
    """Distance to a disc."""
    return lambda points: np.hypot(points[:, 0] - x, points[:, 1] - y) - radius


def difference(outer: Distance, inner: Distance) -> Distance:
    """`outer` without `inner`."""
    return lambda points: np.maximum(outer(points), -inner(points))


def generate_mesh(
    distance: Distance, element_size: float, *, box: tuple[float, float], corners: Sequence[tuple[float, float]]
) -> TriangleMesh:
    """Mesh the part of [0, box₀] × [0, box₁] where `distance` < 0 with edges near `element_size`.

    Edges act as springs that only push; points that leave the domain are projected back; the triangulation is renewed
    when points have moved by a tenth of an edge.  `corners` are nodes that stay; name every corner
    of the boundary.  About 1 s for 2,000 nodes.

    Raises:
        ProblemError: an element size that is not positive or does not resolve the domain.
    """
    if not 0 < element_size <= 0.5 * min(box):
        raise ProblemError(
            f"element_size = {element_size} must be positive and at most half the domain's width, {0.5 * min(box)}"
        )
    fixed = np.array(corners, dtype=np.float64)
    tolerance = 1e-3 * element_size
    points = _start_points(distance, element_size, box, fixed, tolerance)
    previous = np.full_like(points, np.inf)
    for _ in range(_MAX_STEPS):
        if np.sqrt(((points - previous) ** 2).sum(axis=1)).max() > _RETRIANGULATE * element_size:
            previous = points.copy()
            bars = _edges(_triangulate(points, distance, tolerance))
        moved = points + _STEP * _forces(points, bars, held=len(fixed))
        _project(moved, distance, 1e-8 * element_size)
        inside = distance(moved) < -tolerance
        step = np.sqrt(((moved - points) ** 2).sum(axis=1))[inside].max(initial=0.0)
        points = moved
        if step < _SETTLED * element_size:
            break
    mesh = _finished(points, _triangulate(points, distance, tolerance))
    off = np.abs(distance(mesh.nodes[mesh.boundary])).max()
    if mesh.quality.min() < _LEAST_QUALITY or off > _OFF_BOUNDARY * element_size:
        raise ProblemError(
            f"element_size = {element_size} does not resolve the domain: the flattest triangle has quality "
            f"{mesh.quality.min():.2f} (at least {_LEAST_QUALITY} is needed), the farthest boundary node is "
            f"{off / element_size:.2f} edges off the boundary (at most {_OFF_BOUNDARY}); halve it, or name the "
            f"corners that are missing"
        )
    return mesh


def _start_points(
    distance: Distance, size: float, box: tuple[float, float], fixed: np.ndarray, tolerance: float
) -> np.ndarray:
    """`fixed` and the points of an equilateral lattice inside the domain."""
    x, y = np.meshgrid(np.arange(0, box[0] + size, size), np.arange(0, box[1] + size, size * np.sqrt(3) / 2))
    x[1::2] += size / 2
    lattice = np.column_stack([x.ravel(), y.ravel()])
    lattice = lattice[distance(lattice) < tolerance]
    if len(fixed):
        lattice = lattice[cKDTree(fixed).query(lattice)[0] > 0.5 * size]
    return np.concatenate([fixed.reshape(-1, 2), lattice])


def _triangulate(points: np.ndarray, distance: Distance, tolerance: float) -> np.ndarray:
    triangles = Delaunay(points).simplices
    return triangles[distance(points[triangles].mean(axis=1)) < -tolerance]


def _edges(triangles: np.ndarray) -> np.ndarray:
    return np.unique(np.sort(_directed_edges(triangles), axis=1), axis=0)


def _directed_edges(triangles: np.ndarray) -> np.ndarray:
    return np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])


def _forces(points: np.ndarray, bars: np.ndarray, *, held: int) -> np.ndarray:
    """Sum of the spring forces (n, 2); bars longer than their rest length do not pull."""
    vectors = points[bars[:, 0]] - points[bars[:, 1]]
    lengths = np.sqrt((vectors**2).sum(axis=1))
    rest = _PRESSURE * np.sqrt((lengths**2).mean())
    pushes = vectors * (np.maximum(rest - lengths, 0) / lengths)[:, None]
    forces = np.empty_like(points)
    for axis in (0, 1):
        forces[:, axis] = np.bincount(bars[:, 0], pushes[:, axis], len(points)) - np.bincount(
            bars[:, 1], pushes[:, axis], len(points)
        )
    forces[:held] = 0
    return forces


def _project(points: np.ndarray, distance: Distance, step: float) -> None:
    """Move the points outside onto the boundary by one Newton step along the numerical gradient."""
    depth = distance(points)
    outside = np.flatnonzero(depth > 0)
    away, depth = points[outside], depth[outside]
    gradient = np.column_stack([(distance(away + np.eye(2)[axis] * step) - depth) / step for axis in (0, 1)])
    points[outside] -= gradient * (depth / (gradient**2).sum(axis=1))[:, None]


def _finished(points: np.ndarray, triangles: np.ndarray) -> TriangleMesh:
    """Drop what no triangle uses, and find the boundary: the edges of one triangle only."""
    used, triangles = np.unique(triangles, return_inverse=True)
    nodes, triangles = points[used], triangles.reshape(-1, 3)
    edges, counts = np.unique(np.sort(_directed_edges(triangles), axis=1), axis=0, return_counts=True)
    return TriangleMesh(nodes, triangles.astype(np.int64), np.unique(edges[counts == 1]))


def _areas(nodes: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    (ax, ay), (bx, by), (cx, cy) = (nodes[triangles[:, k]].T for k in range(3))
    return 0.5 * ((bx - ax) * (cy - ay) - (cx - ax) * (by - ay))
