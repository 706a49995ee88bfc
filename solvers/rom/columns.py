"""The columns of a matrix that is spread over parts, one a rank, as `nnomp` asks for them."""

from __future__ import annotations

import numpy as np

from forebay.solvers.rom.collective import Ask
from forebay.solvers.rom.nnomp import pursue, start_from


class Part:
    """Some columns of G; answers where they lie."""

    def __init__(self, matrix: np.ndarray, keys: np.ndarray, target: np.ndarray | None = None) -> None:
        """`matrix` (rows, k) is not copied; `keys` (k,) increase; `candidates` meet `target` (rows,), None for zero."""
        self._matrix, self._keys = matrix, keys
        self._target = np.zeros(len(matrix)) if target is None else target
        norms = np.sqrt(np.einsum("ij,ij->j", matrix, matrix))
        self._inverse_norms = np.divide(1.0, norms, out=np.zeros(len(keys)), where=norms > np.finfo(float).tiny)

    def best(self, residual: np.ndarray, excluded: np.ndarray) -> tuple[int, float]:
        """Key and value of the largest g·r / |g| over columns that are not excluded; (-1, -inf) if there are none."""
        values = residual @ self._matrix
        values *= self._inverse_norms
        values[self._positions(excluded)[1]] = -np.inf
        if not len(values):
            return -1, -np.inf
        position = int(np.argmax(values))
        return int(self._keys[position]), float(values[position])

    def take(self, keys: np.ndarray) -> np.ndarray:
        """Columns that are here, as rows (k, rows)."""
        return self._matrix[:, self._positions(keys)[1]].T

    def shared(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the columns that are here: their places among the keys, and `take` of them."""
        places, positions = self._positions(keys)
        return places, self._matrix[:, positions].T

    def candidates(self, limit: float, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys, increasing, and columns (k, rows) that meet the target of this part within a limit on |G w - b|.

        Those of `start` that are here are among them.
        """
        begin = self._keys[self._positions(start)[1]]
        chosen = start_from(self, self._target, begin)
        found = pursue(self, chosen, limit, len(self._keys)).chosen
        keys = np.union1d(found.keys, begin)
        return keys, self.take(keys)

    def _positions(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places among the keys of those that are here, and their columns."""
        if not len(self._keys):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        positions = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        places = np.flatnonzero(self._keys[positions] == keys)
        return places, positions[places]


class Together:
    """The columns of all parts."""

    def __init__(self, ask: Ask, parts: int) -> None:
        """`ask(method, *arguments)` calls the method of each of so many `Part`s and returns the answers."""
        self._ask, self._parts = ask, parts

    def best(self, residual: np.ndarray, excluded: np.ndarray) -> tuple[int, float]:
        """As `Part.best`; of equal values the first part's."""
        answers: list[tuple[int, float]] = self._ask("best", residual, excluded)
        return max(answers, key=lambda answer: answer[1])

    def take(self, keys: np.ndarray) -> np.ndarray:
        """As `Part.take`."""
        answers = self._ask("shared", keys)
        columns = np.empty((len(keys), answers[0][1].shape[1]))
        for places, rows in answers:
            columns[places] = rows
        return columns

    def candidates(self, limit: float, start: np.ndarray) -> Part:
        """Columns of which every part meets its own target within limit / parts: together they can meet the limit."""
        answers = self._ask("candidates", limit / self._parts, start)
        keys, rows = (np.concatenate(items) for items in zip(*answers, strict=True))
        return Part(rows.T, keys)
