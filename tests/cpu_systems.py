"""Diffusion on boxes of cells as plain arrays and as a scipy matrix, independent of torch and of the package."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class GridSystem:
    faces: tuple[np.ndarray, ...]
    reaction: np.ndarray
    rhs: np.ndarray
    matrix: sp.csr_matrix

    def residual(self, field, rhs=None):
        """Relative, in float64."""
        rhs = self.rhs if rhs is None else rhs
        return float(np.linalg.norm(rhs.ravel() - self.matrix @ field.ravel()) / np.linalg.norm(rhs))


def grid_system(shape, *, contrast=10.0, seed=7, walls=True, two_valued=False):
    """Coefficients between 1 and `contrast`, cell by cell; Dirichlet walls, or none: a singular system."""
    rng = np.random.default_rng(seed)
    a = contrast ** (rng.random(shape) > 0.5 if two_valued else rng.random(shape))
    faces, reaction = [], np.zeros(shape)
    for axis in range(len(shape)):
        low, high = np.delete(a, -1, axis), np.delete(a, 0, axis)
        faces.append(2 * low * high / (low + high))
        for end in (0, -1) if walls else ():
            np.moveaxis(reaction, axis, 0)[end] += 2 * np.moveaxis(a, axis, 0)[end]
    rhs = rng.standard_normal(shape)
    return GridSystem(tuple(faces), reaction, rhs if walls else rhs - rhs.mean(), matrix_of(faces, reaction))


def matrix_of(faces, reaction):
    cells = np.arange(reaction.size).reshape(reaction.shape)
    matrix = sp.csr_matrix(sp.diags(reaction.ravel()))
    for axis, face in enumerate(faces):
        i, j, t = np.delete(cells, -1, axis).ravel(), np.delete(cells, 0, axis).ravel(), face.ravel()
        entries = np.concatenate([t, t, -t, -t]), (np.concatenate([i, j, i, j]), np.concatenate([i, j, j, i]))
        matrix = matrix + sp.csr_matrix(entries, shape=matrix.shape)
    return matrix.tocsr()
