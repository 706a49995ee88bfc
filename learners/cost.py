"""What a model costs before it is trained."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from forebay.learners.surrogate import Surrogate


def forward_flops(surrogate: Surrogate) -> int:
    """Floating-point operations of one frame's forward pass (products, convolutions); a training step costs three."""
    io = surrogate.io
    batch = {f.name: torch.zeros(1, *f.shape) for f in io.inputs}
    batch["parameters"] = torch.zeros(1, len(io.parameters))
    batch["time"] = torch.zeros(1, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        surrogate(batch)
    return counter.get_total_flops()
