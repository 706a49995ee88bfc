"""A tiny bar's block solver as a study composes it, and what the tests of it share."""

import numpy as np

from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.study import SolverTable
from forebay.solvers.compose import Sampling, SolidStudy, make_solid
from forebay.solvers.problems.necked_bar import NeckedBar

SIZE = {"cells": (6, 2, 2), "steps": 8, "frames": 3}
SEED, SAMPLES, TOLERANCE = 2026, 18, 0.06
NAMES = ("u", "p")
LIMIT = 205.0
"""Of the traction [MPa]; the third of the first four samples is above it."""


def make(folder, *, problem=None, method="rom", samples=SAMPLES, block=None, full=None, **rom):
    """A block solver as a study composes it, and its library; `audit` is off unless asked for."""
    table = SolverTable(method=method, rom={"tolerance": TOLERANCE, "audit": 0.0} | rom if method == "rom" else {})
    study = SolidStudy("necked_bar", SIZE, folder, folder, table)
    plans = {"train": ChunkPlan("train", samples, block or samples), "validation": ChunkPlan("validation", 2, 2)}
    return make_solid(problem or NeckedBar(**SIZE), study, Sampling(SEED, plans), full=full)


def solved(solver, split="train", chunk=0):
    try:
        return solver.solve_block(split, chunk)
    finally:
        solver.destroy()


def relative(found, true):
    return np.linalg.norm(found.astype(float) - true) / np.linalg.norm(true)


def methods(block):
    return [record.method for record in block.records]
