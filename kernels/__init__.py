"""Batched solvers of structured systems, on GPUs and CPUs.

Names are loaded when they are asked for, so that `forebay.kernels.cpu` serves processes that must not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.kernels.grid_network import GridNetwork
    from forebay.kernels.grid_weights import GridWeights
    from forebay.kernels.pcg import Prepared, prepare, solve
    from forebay.kernels.records import Outcome, SystemRecord
    from forebay.kernels.stencil import Stencil, apply, diffusion

_HOMES = {
    "GridNetwork": "grid_network",
    "GridWeights": "grid_weights",
    "Outcome": "records",
    "Prepared": "pcg",
    "Stencil": "stencil",
    "SystemRecord": "records",
    "apply": "stencil",
    "diffusion": "stencil",
    "prepare": "pcg",
    "solve": "pcg",
}

__all__ = [
    "GridNetwork",
    "GridWeights",
    "Outcome",
    "Prepared",
    "Stencil",
    "SystemRecord",
    "apply",
    "diffusion",
    "prepare",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
