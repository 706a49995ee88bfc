"""A training script of one's own on the samples of a Forebay run, finished or still going on.

The network, the loss and the loop are plain torch; Forebay gives the batches.  Run it beside a run, in two terminals,

    forebay run examples/darcy_demo.toml --folder runs/own
    python examples/own_training.py runs/own --follow --batches 600

or on the data set of a run that has ended, without `--follow`.  It learns u from log a for the two-dimensional problems
whose fields these are (`darcy`): a small residual network of convolutions that sees its position in the square.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from forebay.learners.stream import StreamDataset


class Block(nn.Module):
    """x + a wide convolution of it, with reach across a quarter of a 64 x 64 grid after four of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=4, dilation=2), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def network(width: int = 24, depth: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 1), *(Block(width) for _ in range(depth)), nn.GELU(), nn.Conv2d(width, 1, 1)
    )


def inputs(a: torch.Tensor) -> torch.Tensor:
    """The channels log a, x (1 - x) and y (1 - y): (b, 3, n, n)."""
    line = (torch.arange(a.shape[-1]) + 0.5) / a.shape[-1]
    hill = (line * (1 - line)).expand_as(a)
    return torch.stack([a.log(), hill, hill.mT], 1)


def relative_error(predicted: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of ‖predicted - u‖₂ / ‖u‖₂."""
    return (torch.linalg.vector_norm(predicted - u, dim=(1, 2)) / torch.linalg.vector_norm(u, dim=(1, 2))).mean()


def train(run: Path, *, follow: bool, batches: int, batch_size: int = 16) -> float:
    """Train, then judge on the validation split; its mean relative error."""
    torch.manual_seed(7)
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=batches)
    scale = 1.0
    for number, batch in enumerate(StreamDataset(run, batch_size=batch_size, follow=follow, batches=batches)):
        if number == 0:
            scale = float(batch["u"].std())
        loss = relative_error(scale * model(inputs(batch["a"])).squeeze(1), batch["u"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if number % 50 == 0:
            print(f"batch {number}: relative L2 {float(loss.detach()):.3f}")
    model.eval()
    with torch.no_grad():
        errors = [
            relative_error(scale * model(inputs(batch["a"])).squeeze(1), batch["u"])
            for batch in StreamDataset(run, batch_size=batch_size, split="validation")
        ]
    return float(torch.stack(errors).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--follow", action="store_true", help="the run is going on, or about to begin")
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    error = train(options.run, follow=options.follow, batches=options.batches)
    print(f"validation: relative L2 {error:.3f}")


if __name__ == "__main__":
    main()
