"""Types of the options that several problems have, with their ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from forebay.pipeline.errors import StudyError

Size = Annotated[int, Field(ge=32, le=512)]
"""Cells a side."""
Size3 = Annotated[int, Field(ge=8, le=128)]
"""Cells a side of a cube."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Smoothness = Annotated[float, Field(gt=1, le=8, allow_inf_nan=False)]
"""α of a `random_fields.NeumannField`."""
Smoothness3 = Annotated[float, Field(gt=1.5, le=8, allow_inf_nan=False)]
"""α of a `random_fields.NeumannField` in three dimensions."""
InverseLength = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
"""τ of a `random_fields.NeumannField`."""


def check_range(name: str, low: float, high: float) -> None:
    """Refuse the options `name`_low and `name`_high unless low < high.

    Raises:
        StudyError: naming both.
    """
    if not low < high:
        raise StudyError(
            f"problem.{name}_low = {low} must be below problem.{name}_high = {high}; lower the one or raise the other"
        )
