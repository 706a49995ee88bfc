"""What launches kernels: on a device (`forebay.kernels.launch`), or on the host in tests (`forebay.kernels.host`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Launcher(Protocol):
    """Kernels of one source, compiled with one set of macros."""

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        args: Sequence[Any],
        cluster: int = 1,
        cooperative: bool = False,
        carveout: int = -1,
    ) -> None:
        """Put a kernel on the current stream.

        Args:
            kernel: its name.
            grid: blocks along x, y, z.
            block: threads along x, y, z.
            shared_bytes: dynamic shared memory of a block.
            args: arrays of exactly the kernel's element types, None for a null pointer, and numpy scalars of exactly
                its types.
            cluster: blocks that share their shared memory; the grid is a multiple of it.
            cooperative: all blocks run at the same time, so that they may wait for each other.
            carveout: percent of a multiprocessor's memory to set apart as shared, the rest is cache; -1: the driver
                decides.  A hint, for kernels that count on several blocks of a multiprocessor.
        """
