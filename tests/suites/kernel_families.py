"""Which builds of which sources are run on the host, and by which checks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from suites import grid_kernel_checks, on_chip_kernel_checks, sell_kernel_checks

DATA_SEED = 2026


@dataclass(frozen=True)
class Family:
    sources: tuple
    """Names in csrc."""
    macros: dict
    check: Callable
    """Takes the launchers of the sources; raises AssertionError."""


def _grid(dimension, real, dtype):
    macros = {"DIM": str(dimension), "REAL": real, "BLOCK": str(grid_kernel_checks.BLOCK)}
    return Family(
        ("large_grid",), macros, lambda launcher: grid_kernel_checks.check_all(launcher, dimension, dtype, DATA_SEED)
    )


def _on_chip(dimension, cluster, *, direction_on_chip=True):
    plan = on_chip_kernel_checks.plan_with(dimension, cluster, direction_on_chip)
    return Family(
        ("on_chip",), plan.macros, lambda launcher: on_chip_kernel_checks.check_all(launcher, plan, DATA_SEED)
    )


def _sell(bits):
    columns, block = sell_kernel_checks.COLUMNS, sell_kernel_checks.BLOCK
    macros = {"REAL": "double", "CYCLE": "float", "VALUE": str(bits), "NRHS": str(columns), "BLOCK": str(block)}
    return Family(
        ("sell", "sell_small"),
        macros,
        lambda launcher, small: sell_kernel_checks.check_all(launcher, small, bits, DATA_SEED),
    )


FAMILIES = {
    "grid_2d": _grid(2, "float", np.float32),
    "grid_3d": _grid(3, "float", np.float32),
    "grid_2d_double": _grid(2, "double", np.float64),
    "on_chip_2d": _on_chip(2, 1, direction_on_chip=False),
    "on_chip_2d_cluster": _on_chip(2, 2),
    "on_chip_3d": _on_chip(3, 1),
    "sell": _sell(32),
    "sell_bfloat16": _sell(16),
}
