"""Train the shipped weights of learned smoothed aggregation: python scripts/train_amg_weights.py --steps 2000.

Writes kernels/weights/amg.safetensors, after a quarter of an hour on one core, and says how many iterations they take
on matrices that the training has not seen, over those of the classical cycle.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from forebay.kernels.amg import CLASSICAL, AmgSolver, AmgWeights
from forebay.learners.amg_meshes import DiffusionMesh, draws, training_meshes
from forebay.learners.amg_training import AmgMesh, AmgOptions, amg_step, make_amg_state

SHIPPED = Path(__file__).parents[1] / "kernels" / "weights" / "amg.safetensors"
BATCH = 6
LARGEST_CONTRAST = 1e5
VALIDATION = 60
"""Held-out matrices."""
SAID = 100
"""Steps between two lines of progress."""

logger = logging.getLogger("train_amg_weights")


def solvers_of(meshes: Sequence[DiffusionMesh], weights: AmgWeights) -> list[AmgSolver]:
    """One a mesh, without a guard."""
    matrices = [mesh.reference for mesh in meshes]
    return [AmgSolver(m.indptr, m.indices, m.data, weights=weights, guard=False) for m in matrices]


def iterations_ratio(weights: AmgWeights, seed: int) -> float:
    """Geometric mean of iterations over the classical cycle's, on meshes and matrices of their own."""
    rng = np.random.default_rng(seed)
    meshes = training_meshes(rng)
    contenders = solvers_of(meshes, weights), solvers_of(meshes, CLASSICAL)
    stream, logarithms = draws(meshes, rng, largest_contrast=LARGEST_CONTRAST), []
    for _ in range(VALIDATION):
        number, matrix = next(stream)
        rhs, counts = rng.standard_normal(matrix.shape[0]), []
        for solvers in contenders:
            solvers[number].setup(matrix.data)
            counts.append(solvers[number].solve(rhs, max_iterations=2000)[1][0].iterations)
        logarithms.append(math.log(counts[0] / counts[1]))
    return math.exp(statistics.fmean(logarithms))


def train(steps: int, seed: int) -> AmgWeights:
    """From the classical cycle, on a stream of random coefficients on small meshes of every kind."""
    rng = np.random.default_rng(seed)
    meshes = training_meshes(rng)
    prepared = [AmgMesh.of(solver.symbolic) for solver in solvers_of(meshes, CLASSICAL)]
    stream = draws(meshes, rng, largest_contrast=LARGEST_CONTRAST)
    state, losses = make_amg_state(AmgOptions(steps=steps), seed=seed), []
    for step in range(1, steps + 1):
        batch = [(prepared[number], matrix.data) for number, matrix in (next(stream) for _ in range(BATCH))]
        state, metrics = amg_step(state, batch)
        losses.append(metrics.loss)
        if step % SAID == 0:
            logger.info("step %d of %d: loss %.4f", step, steps, statistics.fmean(losses[-SAID:]))
    return state.network.export()


def main() -> None:
    """Train, validate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "kernels" / "weights" / "amg.safetensors"
    )
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    weights = train(chosen.steps, chosen.seed)
    weights.save(chosen.out)
    ratio = iterations_ratio(weights, chosen.seed + 1)
    logger.info("%.3f of the classical cycle's iterations on held-out matrices; %s", ratio, chosen.out)


if __name__ == "__main__":
    main()
