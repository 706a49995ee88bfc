"""Solver actor: unpack, call one plain object, pack."""

from __future__ import annotations

import ray

from forebay.cluster.marks import Mark
from forebay.cluster.specs import RunSpec, make_solver
from forebay.pipeline.records import Block, Care, Split


class SolverActor:
    """One PETSc stack; makes blocks on request and leaves them in this node's object store."""

    def __init__(self, spec: RunSpec, name: str) -> None:
        self._solver = make_solver(spec)
        self._folder, self._name = spec.folder, name

    def ready(self) -> str:
        """Id of the node that it is on, once the problem is set up."""
        return ray.get_runtime_context().get_node_id()

    @ray.method(num_returns=2)
    def solve(self, split: Split, chunk: int, care: Care | None = None) -> tuple[tuple, Block]:
        """What the driver needs to know, and the block itself, which the driver never opens."""
        if care is None:
            block = self._solver.solve_block(split, chunk)
        else:  # a solver was lost at this block
            with Mark(self._folder, self._name, split) as mark:
                block = self._solver.solve_block(split, chunk, care=care, mark=mark.at)
        told = (tuple(block.records), block.arrays["parameters"], block.seconds, block.choices, block.path)
        return told, block
