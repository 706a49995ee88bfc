"""Simulations with and without local structure, for the tests of local bases."""

import numpy as np

ROWS, STEPS, SPAN = 60, 6, 3


def weights_of(rows=ROWS):
    return np.random.default_rng(2026).uniform(0.2, 5.0, rows)


def planted(seed, groups=(9, 7, 11), noise=1e-3):
    """Every group in three directions of its own, told apart by the first parameter; and which group each is in.

    Simulations of one group are alike but for size, sign and a tenth of their shape.
    """
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(groups)), groups))
    spans = rng.normal(size=(len(groups), ROWS, SPAN))
    paths = rng.normal(size=(len(groups), SPAN, STEPS))
    simulations = []
    for g in group:
        path = paths[g] + 0.1 * rng.normal(size=(SPAN, STEPS))
        size = rng.choice([-1, 1]) * 10.0 ** rng.uniform(-1, 1)
        simulations.append(size * (spans[g] @ path + noise * rng.normal(size=(ROWS, STEPS))))
    parameters = np.column_stack([group + rng.uniform(-0.3, 0.3, len(group)), 1e4 * rng.uniform(size=len(group))])
    return simulations, parameters, group


def structureless(seed, count=24):
    """All simulations are draws from the same modes of decaying size, whatever their parameters."""
    rng = np.random.default_rng(seed)
    modes = rng.normal(size=(ROWS, 20)) * 0.6 ** np.arange(20)
    simulations = [modes @ rng.normal(size=(20, STEPS)) for _ in range(count)]
    return simulations, rng.uniform(size=(count, 2))
