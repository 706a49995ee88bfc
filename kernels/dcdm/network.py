"""The convolutional network of the deep conjugate direction method: a residual in, a search direction out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = 16
FINE_CONVOLUTIONS, COARSE_CONVOLUTIONS = 8, 14


class DirectionNetwork(nn.Module):
    """f: (b, z, y, x) → (b, z, y, x), an approximation of c A⁻¹ on unit vectors; the constant c > 0 is free.

    One convolution 1 → 16 channels, two residual pairs (convolution, ReLU, convolution, skip) on the grid itself, seven
    on cells averaged over 2 x 2 x 2, the result repeated back to the grid and added to what was there, two more pairs,
    and a weighted sum of the channels: 23 convolutions of 3 x 3 x 3 with zeros beyond the edge, 152,881 parameters.
    Along an axis an output depends on the 37 or 38 cells on either side, so what is wider than that takes iterations.
    Costs 2 · 27 · 256 · (8 + 14/8) ≈ 135 kflop per cell.

    Odd sizes are padded with one layer of zeros.  The map is nonlinear and not symmetric; give it r/|r|.

    Source: Kaneda et al., ICML 2023, arXiv 2205.10763.  Differs: how many convolutions stand on which level, and where
    the skips are, is ours, within the paper's kind of network and at about its cost.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        half = FINE_CONVOLUTIONS // 2
        self.first = _Convolution(1)
        self.down = nn.ModuleList(_Convolution(CHANNELS) for _ in range(half))
        self.coarse = nn.ModuleList(_Convolution(CHANNELS) for _ in range(COARSE_CONVOLUTIONS))
        self.up = nn.ModuleList(_Convolution(CHANNELS) for _ in range(half))
        self.head = nn.Conv3d(CHANNELS, 1, 1)
        _initialise(self, generator)
        # Channels innermost is what the convolutions of a CPU want: 1.6 times faster at 16 x 16 x 16.
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, residuals: Tensor) -> Tensor:
        """Directions of unit residuals, (b, z, y, x) float32."""
        shape = residuals.shape[1:]
        odd = [pad for size in reversed(shape) for pad in (0, size % 2)]
        padded = nn.functional.pad(residuals, odd).unsqueeze(1).contiguous(memory_format=torch.channels_last_3d)
        fine = _residual_pairs(self.first(padded), self.down)
        coarse = _residual_pairs(nn.functional.avg_pool3d(fine, 2), self.coarse)
        fine = _residual_pairs(fine + nn.functional.interpolate(coarse, scale_factor=2), self.up)
        return self.head(fine)[:, 0, : shape[0], : shape[1], : shape[2]]


def bytes_per_cell(bytes_per_value: int) -> float:
    """Traffic of one application if each convolution reads and writes its channels once: 1,248 float32, 624 bf16.

    What is pointwise is taken as fused; the first and the last layer (one channel on a side) are left out.
    """
    return 2 * CHANNELS * bytes_per_value * (FINE_CONVOLUTIONS + COARSE_CONVOLUTIONS / 8)


class _Convolution(nn.Conv3d):
    """3 x 3 x 3 with zeros beyond the edge."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, CHANNELS, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        if features.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return super().forward(features)
        # For one small system on one thread torch would choose its slow path: 47 instead of 2.7 ms at 32 x 32 x 32.
        ones = [1, 1, 1]
        return torch.mkldnn_convolution(features, self.weight, self.bias, ones, ones, ones, 1)


def _residual_pairs(features: Tensor, layers: nn.ModuleList) -> Tensor:
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        features = features + second(torch.relu(first(features)))
    return features


def _initialise(network: DirectionNetwork, generator: torch.Generator | None) -> None:
    """He's initialisation from the given generator; the second convolution of each pair starts near zero.

    So the network starts as a short chain of linear maps, which trains from the first step.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            second = name.split(".")[0] in ("down", "coarse", "up") and int(name.split(".")[1]) % 2 == 1
            deviation = (2.0 / parameter[0].numel()) ** 0.5 * (0.1 if second else 1.0)
            parameter.normal_(0.0, deviation, generator=generator)
