"""Train the shipped weights of the learned multigrid: python scripts/train_grid_weights.py 2 --steps 1000.

Writes kernels/weights/grid2d.safetensors or grid3d.safetensors, after minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from forebay.learners.media import stream
from forebay.learners.preconditioner import PreconditionerOptions, make_state, train

SHAPES = {
    2: ((32, 32), (48, 48), (64, 64), (37, 53)),
    3: ((12, 12, 12), (16, 16, 16), (11, 13, 17)),
}
BATCH = {2: 4, 3: 2}


def main() -> None:
    """Train from the classical cycle on random media of contrast 1 to 1e6."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dimension", type=int, choices=(2, 3))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    state = make_state(chosen.dimension, PreconditionerOptions(steps=chosen.steps), seed=chosen.seed)
    stencils = stream(SHAPES[chosen.dimension], batch=BATCH[chosen.dimension], seed=chosen.seed + 1)
    weights = Path(__file__).parents[1] / "kernels" / "weights" / f"grid{chosen.dimension}d.safetensors"
    train(state, stencils).network.weights().save(chosen.out or weights)


if __name__ == "__main__":
    main()
