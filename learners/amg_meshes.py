"""Diffusion matrices on small unstructured meshes and grids, for training and measuring learned smoothed aggregation.

-∇·(a ∇u) = f on the unit square or cube, u = 0 on the boundary: linear elements on a jittered lattice triangulated by
Delaunay, or finite volumes on equal cells.  Boundary nodes are left out; matrices are scaled to a mean diagonal of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.spatial import Delaunay

Family = Literal["constant", "log_normal", "two_valued", "white"]
FAMILIES: tuple[Family, ...] = ("constant", "log_normal", "two_valued", "white")
_JITTER = 0.3
"""Of inner nodes, as a share of the lattice's spacing: meshes with short and long edges, but none inverted."""
_WAVES = 64
"""Plane waves of a random field."""
_FLAT = 1e-9
"""Elements of less than this share of the mean volume are slivers of Delaunay on the flat boundary."""


@dataclass(frozen=True, eq=False)
class DiffusionMesh:
    """Element (or face) matrices of coefficient 1, from which any coefficient's matrix is a weighted sum."""

    centres: np.ndarray
    """Where the coefficient of each element is taken, (e, d)."""
    nodes: np.ndarray
    """Numbers of the nodes of each element (e, v)."""
    element: np.ndarray
    """Matrices of coefficient 1, (e, v, v)."""
    inner: np.ndarray
    """Numbers of the nodes that are unknowns."""
    count: int
    """Nodes in all."""

    @property
    def unknowns(self) -> int:
        """Number of inner nodes, n."""
        return len(self.inner)

    def matrix(self, coefficient: np.ndarray) -> csr_array:
        """A for a coefficient an element (e,), all > 0; CSR with sorted columns, the same pattern every time."""
        entries = (self.element * coefficient[:, None, None]).ravel()
        values = np.bincount(self._place, entries[self._kept], minlength=len(self._pattern.indices))
        values /= np.abs(values[self._diagonal]).mean()
        return csr_array((values, self._pattern.indices, self._pattern.indptr), shape=self._pattern.shape)

    @cached_property
    def reference(self) -> csr_array:
        """A for coefficient 1."""
        return self.matrix(np.ones(len(self.centres)))

    def draw(self, family: Family, contrast: float, rng: np.random.Generator) -> csr_array:
        """A for a random coefficient whose largest value is about `contrast` times its smallest."""
        return self.matrix(coefficient(self.centres, family, contrast, rng))

    @cached_property
    def _numbering(self) -> np.ndarray:
        numbering = np.full(self.count, -1)
        numbering[self.inner] = np.arange(len(self.inner))
        return numbering

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        vertices = self.nodes.shape[1]
        rows, columns = np.repeat(self.nodes, vertices, axis=1).ravel(), np.tile(self.nodes, (1, vertices)).ravel()
        return self._numbering[rows], self._numbering[columns]

    @cached_property
    def _kept(self) -> np.ndarray:
        rows, columns = self._pairs
        return (rows >= 0) & (columns >= 0)

    @cached_property
    def _pattern(self) -> csr_array:
        rows, columns = (numbers[self._kept] for numbers in self._pairs)
        n = self.unknowns
        pattern = coo_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(n, n)).tocsr()
        pattern.sort_indices()
        return pattern

    @cached_property
    def _place(self) -> np.ndarray:
        rows, columns = (numbers[self._kept].astype(np.int64) for numbers in self._pairs)
        n = self.unknowns
        of_pattern = np.repeat(np.arange(n, dtype=np.int64), np.diff(self._pattern.indptr)) * n + self._pattern.indices
        return np.searchsorted(of_pattern, rows * n + columns)

    @cached_property
    def _diagonal(self) -> np.ndarray:
        rows = np.repeat(np.arange(self.unknowns), np.diff(self._pattern.indptr))
        return np.flatnonzero(rows == self._pattern.indices)


def coefficient(points: np.ndarray, family: Family, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """Random coefficient at points (e, d), from a sum of plane waves g of correlation length 0.05 ... 0.4.

    log_normal: exp(g ln(contrast) / 4), two_valued: contrast where g exceeds a random level, 1 elsewhere, white: as
    log_normal with independent values, constant: 1.
    """
    if family == "constant":
        return np.ones(len(points))
    if family == "white":
        return np.exp(rng.standard_normal(len(points)) * math.log(contrast) / 4)
    length = math.exp(rng.uniform(math.log(0.05), math.log(0.4)))
    waves = rng.standard_normal((_WAVES, points.shape[1])) / length
    field = np.cos(points @ waves.T + rng.uniform(0, 2 * np.pi, _WAVES)).sum(1) * math.sqrt(2 / _WAVES)
    if family == "log_normal":
        return np.exp(field * math.log(contrast) / 4)
    return np.where(field > rng.uniform(-0.5, 0.5), contrast, 1.0)


def p1_mesh(nodes: int, dimension: Literal[2, 3], rng: np.random.Generator) -> DiffusionMesh:
    """Linear elements on about so many nodes, the boundary's included."""
    side = round(nodes ** (1 / dimension))
    lattice = np.meshgrid(*[np.linspace(0, 1, side)] * dimension, indexing="ij")
    points = np.stack(lattice, -1).reshape(-1, dimension)
    inner = ((points > 1e-9) & (points < 1 - 1e-9)).all(1)
    points[inner] += rng.uniform(-_JITTER, _JITTER, (int(inner.sum()), dimension)) / side
    simplices = Delaunay(points).simplices
    edges = points[simplices[:, 1:]] - points[simplices[:, :1]]
    volumes = np.abs(np.linalg.det(edges)) / math.factorial(dimension)
    solid = volumes > _FLAT * volumes.mean()
    simplices, edges, volumes = simplices[solid], edges[solid], volumes[solid]
    gradients = np.linalg.inv(edges).transpose(0, 2, 1)
    gradients = np.concatenate([-gradients.sum(1, keepdims=True), gradients], axis=1)
    element = (gradients @ gradients.transpose(0, 2, 1)) * volumes[:, None, None]
    return DiffusionMesh(points[simplices].mean(1), simplices, element, np.flatnonzero(inner), len(points))


def grid_mesh(side: int, dimension: Literal[2, 3]) -> DiffusionMesh:
    """5- and 7-point matrices on a lattice of side^dimension nodes, the boundary's included; a coefficient a face."""
    numbers = np.arange(side**dimension).reshape((side,) * dimension)
    at = np.stack(np.meshgrid(*[np.linspace(0, 1, side)] * dimension, indexing="ij"), -1)
    pairs, centres = [], []
    for axis in range(dimension):
        low, high = (np.take(numbers, np.arange(side - 1) + shift, axis).ravel() for shift in (0, 1))
        pairs.append(np.column_stack([low, high]))
        centres.append(at.reshape(-1, dimension)[pairs[-1]].mean(1))
    faces = np.concatenate(pairs)
    element = np.tile([[1.0, -1.0], [-1.0, 1.0]], (len(faces), 1, 1))
    inner = ((at > 1e-9) & (at < 1 - 1e-9)).all(-1).ravel()
    return DiffusionMesh(np.concatenate(centres), faces, element, np.flatnonzero(inner), side**dimension)


def training_meshes(rng: np.random.Generator) -> list[DiffusionMesh]:
    """Small meshes of every kind: some 1,000 to 2,000 unknowns, enough for two levels and the coarsest."""
    made = [p1_mesh(nodes, 2, rng) for nodes in (900, 1400, 2000)]
    made += [p1_mesh(nodes, 3, rng) for nodes in (1300, 2200, 3000)]
    return [*made, grid_mesh(36, 2), grid_mesh(44, 2), grid_mesh(13, 3), grid_mesh(15, 3)]


def draws(
    meshes: list[DiffusionMesh], rng: np.random.Generator, *, largest_contrast: float = 1e4
) -> Iterator[tuple[int, csr_array]]:
    """Endless: the number of a mesh, and a matrix on it of any family, its contrast log-uniform up to the largest."""
    while True:
        mesh = int(rng.integers(len(meshes)))
        family = FAMILIES[int(rng.choice(len(FAMILIES), p=(0.1, 0.3, 0.3, 0.3)))]
        contrast = math.exp(rng.uniform(0, math.log(largest_contrast)))
        yield mesh, meshes[mesh].draw(family, contrast, rng)
