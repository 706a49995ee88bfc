"""Sequences of linear systems that the solver benchmarks share: drawn and assembled as a run does it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.sampling import Design, draw_parameters, sample_generator
from forebay.pipeline.stages import Draw, Problem, Symmetry
from forebay.solvers.assemble import System, system_of
from forebay.solvers.krylov.sorting import FeatureMap, nearest_order
from forebay.solvers.problems import load_problem

SEED = 20_241
STREAM = "train"
EXAMPLES = 16
"""Samples that the features of an order are scaled by."""


@dataclass(frozen=True, eq=False)
class SystemSequence:
    """Systems of one sparsity; `select` writes one of them into `system`, as the samples of a run are written."""

    name: str
    system: System
    draws: Sequence[Draw]
    symmetry: Symmetry
    features: np.ndarray
    """What samples are alike by, (systems, features)."""
    feature_seconds: float = 0.0
    """Processor time that the features of one sample took."""

    def __len__(self) -> int:
        return len(self.draws)

    def select(self, sample: int) -> None:
        """Assemble sample number `sample`."""
        self.system.update(self.draws[sample])

    @cached_property
    def order(self) -> np.ndarray:
        """Ids along a greedy path of near neighbours."""
        return nearest_order(self.features, window=None)

    @cached_property
    def sorting_seconds(self) -> float:
        """Processor time that its features and place in the order cost a sample."""
        started = time.process_time()
        nearest_order(self.features, window=None)
        return self.feature_seconds + (time.process_time() - started) / len(self)

    def first(self, count: int) -> SystemSequence:
        """A shorter sequence, with an order of its own, around the same system."""
        return replace(self, draws=self.draws[:count], features=self.features[:count])

    def sorted(self) -> SystemSequence:
        """The same systems along the path, as a sequence that has no further order."""
        draws = [self.draws[sample] for sample in self.order]
        return replace(self, draws=draws, features=np.arange(len(self), dtype=np.float64)[:, None])

    def destroy(self) -> None:
        """Free PETSc's side, also of the shorter ones."""
        self.system.destroy()


def of_problem(name: str, options: Mapping[str, Any], count: int) -> SystemSequence:
    """The first `count` training samples of a built-in problem."""
    problem = load_problem(name, options, folder=Path())
    draws = tuple(draw_sample(problem, sample, count) for sample in range(count))
    features = FeatureMap(problem.schema, draws[:EXAMPLES])
    started = time.process_time()
    table = np.stack([features(draw) for draw in draws])
    seconds = (time.process_time() - started) / count
    return SystemSequence(name, system_of(problem), draws, problem.symmetry, table, seconds)


def draw_sample(problem: Problem, sample: int, count: int) -> Draw:
    """Inputs and parameters of one sample."""
    schema = problem.schema
    parameters = draw_parameters(schema, Design("random", SEED, STREAM, count, len(schema.parameters)), sample)
    return {**problem.draw(parameters, sample_generator(SEED, STREAM, sample)), "parameters": parameters}
