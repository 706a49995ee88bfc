"""Which device a study's `learner.device` means in this process."""

from __future__ import annotations

import torch

from forebay.pipeline.errors import StudyError


def learner_device(name: str) -> torch.device:
    """The device of that name: "auto" is a GPU where this process sees one, else the CPU; "cuda" is the current GPU.

    A GPU always comes with its number, so that devices can be compared.

    Raises:
        StudyError: a GPU that this process does not see.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    asked = torch.device("cuda" if name == "auto" else name)
    number = asked.index
    if not count or (number is not None and number >= count):
        seen = "none" if not count else f"{count}, numbered from 0"
        raise StudyError(
            f"learner.device = {name!r} needs an NVIDIA GPU that this process does not see (it sees {seen}); use "
            f"'auto', which takes the processor where there is none, or look at CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", torch.cuda.current_device() if number is None else number)
