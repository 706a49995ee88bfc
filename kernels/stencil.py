"""The operators that are solved here: symmetric five- and seven-point stencils on boxes of cells, many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Wall = Literal["dirichlet", "neumann"]
Walls = Wall | Sequence[Wall | tuple[Wall, Wall]]


@dataclass(frozen=True, slots=True, eq=False)
class Stencil:
    r"""Symmetric positive (semi-)definite operators (A u)ᵢ = Σ_{faces (i, j)} T (uᵢ - uⱼ) + sᵢ uᵢ, one a batch entry.

    Rows of cells that are not `active` are made rows of the identity on construction (no faces, s = 1), so that faces
    and reaction alone define A; solvers return 0 there.  With s = 0 in every active cell a system is singular: its null
    space are the constants.

    Raises:
        ValueError: the arrays differ in batch, shape, type or device, or their type is not a floating-point one.
    """

    faces: tuple[Tensor, ...]
    """T ≥ 0 between neighbours along each axis, slowest first: [batch, y - 1, x], [batch, y, x - 1], and likewise in
    three dimensions; a conductance, [flux per difference of u]."""
    reaction: Tensor
    """s ≥ 0, [batch, y, x] or [batch, z, y, x]: zeroth-order terms and what Dirichlet walls add; units of T."""
    active: Tensor | None = None
    """Which cells belong to the domain, bool [batch or 1, *shape]; None: all."""

    def __post_init__(self) -> None:
        _check_arrays(self.faces, self.reaction, self.active)
        if self.active is not None:
            faces = tuple(
                torch.where(low & high, face, 0.0)
                for face, (low, high) in zip(self.faces, _neighbours_of(self.active), strict=True)
            )
            object.__setattr__(self, "faces", faces)
            object.__setattr__(self, "reaction", torch.where(self.active, self.reaction, 1.0))

    @property
    def batch(self) -> int:
        """Number of systems."""
        return self.reaction.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis, slowest first."""
        return tuple(self.reaction.shape[1:])

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.faces)

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.reaction.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the coefficients."""
        return self.reaction.dtype

    def diagonal(self) -> Tensor:
        """The diagonal of A, [batch, *shape]."""
        total = self.reaction.clone()
        for axis, face in enumerate(self.faces, 1):
            count = total.shape[axis] - 1
            total.narrow(axis, 0, count).add_(face)
            total.narrow(axis, 1, count).add_(face)
        return total

    def singular(self) -> Tensor:
        """Which systems have s = 0 in every active cell (only Neumann walls), bool [batch]."""
        grounded = self.reaction != 0
        if self.active is not None:
            grounded &= self.active
        return ~grounded.flatten(1).any(1)

    def finite(self) -> Tensor:
        """Which systems have neither NaN nor inf among their coefficients, bool [batch]."""
        result = torch.isfinite(self.reaction).flatten(1).all(1)
        for face in self.faces:
            result &= torch.isfinite(face).flatten(1).all(1)
        return result

    def require_nonnegative(self) -> None:
        """Refuse negative coefficients; NaN passes, it is the matter of its own system (`finite`).

        Raises:
            ValueError: a face or a reaction is negative.
        """
        named = (*((f"faces[{axis}]", face) for axis, face in enumerate(self.faces)), ("reaction", self.reaction))
        for name, values in named:
            if (where := _first(values < 0)) is not None:
                raise ValueError(
                    f"{name} is {values[where].item():g} at [system, cell] {list(where)}; it must not be negative, or "
                    f"the operator is not positive definite: mend the coefficient or its sign"
                )

    def select(self, indices: Tensor | slice) -> Stencil:
        """The systems at these positions: int64 [k] or bool [batch] (a copy), or a slice (a view)."""
        active = self.active
        if active is not None and active.shape[0] > 1:
            active = active[indices]
        return Stencil(tuple(face[indices] for face in self.faces), self.reaction[indices], active)

    def scaled(self, factors: Tensor) -> Stencil:
        """Each system times a positive factor, [batch]; rows of cells left out stay those of the identity."""
        by = factors.reshape(-1, *[1] * self.dimension)
        return Stencil(tuple(by * face for face in self.faces), by * self.reaction, self.active)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Stencil:
        """The same elsewhere or in another precision; arrays are shared where nothing changes."""
        device, dtype = torch.device(device) if device is not None else self.device, dtype or self.dtype
        active = None if self.active is None else self.active.to(device)
        return Stencil(tuple(face.to(device, dtype) for face in self.faces), self.reaction.to(device, dtype), active)

    def contiguous(self) -> Stencil:
        """The same in arrays that kernels can walk through; arrays are shared where they are such already."""
        active = None if self.active is None else self.active.contiguous()
        return Stencil(tuple(face.contiguous() for face in self.faces), self.reaction.contiguous(), active)


def diffusion(
    a: Tensor,
    walls: Walls = "dirichlet",
    *,
    spacing: float | Sequence[float] = 1.0,
    reaction: Tensor | float | None = None,
    active: Tensor | None = None,
    hole: Wall = "neumann",
) -> Stencil:
    r"""-∇·(a ∇u) + c u by cell-centred finite volumes, integrated over the cells.

    Faces carry the harmonic mean of the two cells, T = (V/h²) · 2 aᵢ aⱼ / (aᵢ + aⱼ), with h the spacing along the axis
    and V the volume of a cell; second order where a is smooth, and exact in one dimension where a jumps at a face.  The
    right-hand side is f V; at a Dirichlet wall of value g it gets (V/h²) 2 a g more.

    Args:
        a: coefficient, [batch, y, x] or [batch, z, y, x], > 0 in active cells; others may hold anything.
        walls: "dirichlet" (u given half a cell outside the last centre, adds 2 a V/h² to s) or "neumann" (no flux), for
            all sides, or one entry an axis, slowest first, each for both sides or a pair (low, high).
        spacing: side h of a cell, for all axes or one an axis.
        reaction: c ≥ 0, a number or an array that broadcasts to that of a.
        active: bool [batch or 1, *shape]; the others are left out of the domain.
        hole: what the sides of cells left out are.

    Raises:
        ValueError: a is not positive, c is negative, or an argument has the wrong shape.  NaN and inf pass: they cost
            their own system only, see `solve`.
    """
    dimension = a.ndim - 1
    if dimension not in (2, 3) or not a.is_floating_point():
        raise ValueError(
            f"coefficients of {a.dtype} and shape {tuple(a.shape)}; they must be floating-point numbers of shape "
            f"[batch, y, x] or [batch, z, y, x]: give one system a leading axis by `a[None]`"
        )
    sides, steps = _sides_of(walls, dimension), _spacing_of(spacing, dimension)
    if active is not None:
        _check_active(active, a)
        a = torch.where(active, a, 1.0)
    if (where := _first(a <= 0)) is not None:
        raise ValueError(
            f"the coefficient is {a[where].item():g} at [system, cell] {list(where)}; it must be positive: take cells "
            f"that do not conduct out of the domain by `active`"
        )
    volume = math.prod(steps)
    total = _volumetric(reaction, a) * volume
    faces = []
    for axis, (pair, step) in enumerate(zip(sides, steps, strict=True), 1):
        weight = volume / step**2
        low, high = a.narrow(axis, 0, a.shape[axis] - 1), a.narrow(axis, 1, a.shape[axis] - 1)
        # Not 2 a b / (a + b): the product overflows or vanishes long before the mean does.
        faces.append(2 * weight * (low * (high / (low + high))))
        for kind, position in zip(pair, (0, a.shape[axis] - 1), strict=True):
            if kind == "dirichlet":
                total.select(axis, position).add_(a.select(axis, position), alpha=2 * weight)
        if active is not None and hole == "dirichlet":
            _ground_holes(total, a, active, axis, 2 * weight)
    return Stencil(tuple(faces), total, active)


def apply(stencil: Stencil, u: Tensor) -> Tensor:
    """A u for fields u of shape [k, *shape], where k is the batch or one of the two is 1; in the wider type."""
    result = stencil.reaction * u
    for axis, face in enumerate(stencil.faces, 1):
        flux = face * u.diff(dim=axis)
        count = result.shape[axis] - 1
        result.narrow(axis, 0, count).sub_(flux)
        result.narrow(axis, 1, count).add_(flux)
    return result


def _neighbours_of(cells: Tensor) -> list[tuple[Tensor, Tensor]]:
    """By axis, the cells on the low and on the high side of each face."""
    return [
        (cells.narrow(axis, 0, cells.shape[axis] - 1), cells.narrow(axis, 1, cells.shape[axis] - 1))
        for axis in range(1, cells.ndim)
    ]


def _ground_holes(total: Tensor, a: Tensor, active: Tensor, axis: int, weight: float) -> None:
    """Add the half-cell conductance to the hole's wall, weight · a, at both kinds of its faces along an axis."""
    count = a.shape[axis] - 1
    low, high = active.narrow(axis, 0, count), active.narrow(axis, 1, count)
    total.narrow(axis, 0, count).add_(torch.where(low & ~high, weight * a.narrow(axis, 0, count), 0.0))
    total.narrow(axis, 1, count).add_(torch.where(high & ~low, weight * a.narrow(axis, 1, count), 0.0))


def _volumetric(reaction: Tensor | float | None, a: Tensor) -> Tensor:
    """The zeroth-order term c as an array of its own, shaped like a."""
    values = torch.as_tensor(0.0 if reaction is None else reaction, dtype=a.dtype, device=a.device)
    try:
        values = values.broadcast_to(a.shape).clone()
    except RuntimeError as error:
        raise ValueError(
            f"the reaction of shape {tuple(values.shape)} does not fit coefficients of shape {tuple(a.shape)}; pass a "
            f"number or an array that broadcasts to them"
        ) from error
    if (where := _first(values < 0)) is not None:
        raise ValueError(
            f"the reaction is {values[where].item():g} at [system, cell] {list(where)}; it must not be negative, or "
            f"the operator is not positive definite"
        )
    return values


def _sides_of(walls: Walls, dimension: int) -> list[tuple[Wall, Wall]]:
    """Kind of the low and the high wall by axis."""
    axes = [walls] * dimension if isinstance(walls, str) else list(walls)
    pairs = [(kind, kind) if isinstance(kind, str) else tuple(kind) for kind in axes]
    known = all(len(pair) == 2 and set(pair) <= {"dirichlet", "neumann"} for pair in pairs)
    if len(pairs) != dimension or not known:
        raise ValueError(
            f'walls={walls!r}; it must be "dirichlet", "neumann", or one entry for each of the {dimension} axes, '
            f'slowest first, each a kind or a pair such as ("dirichlet", "neumann")'
        )
    return pairs  # type: ignore[return-value]


def _spacing_of(spacing: float | Sequence[float], dimension: int) -> tuple[float, ...]:
    steps = (float(spacing),) * dimension if isinstance(spacing, int | float) else tuple(map(float, spacing))
    if len(steps) != dimension or not all(math.isfinite(step) and step > 0 for step in steps):
        raise ValueError(
            f"spacing={spacing!r}; it must be one positive number, or one for each of the {dimension} axes"
        )
    return steps


def _check_arrays(faces: tuple[Tensor, ...], reaction: Tensor, active: Tensor | None) -> None:
    dimension = reaction.ndim - 1
    if dimension not in (2, 3) or len(faces) != dimension or reaction.numel() == 0:
        raise ValueError(
            f"{len(faces)} face arrays and a reaction of shape {tuple(reaction.shape)}; the reaction must have shape "
            f"[batch, y, x] or [batch, z, y, x], none of them 0, and there must be one face array an axis"
        )
    for axis, face in enumerate(faces):
        expected = list(reaction.shape)
        expected[axis + 1] -= 1
        if list(face.shape) != expected:
            raise ValueError(
                f"faces[{axis}] has shape {list(face.shape)}; beside a reaction of shape {list(reaction.shape)} it "
                f"must be {expected}: the faces between neighbours along that axis"
            )
        if face.dtype != reaction.dtype or face.device != reaction.device:
            raise ValueError(
                f"faces[{axis}] is {face.dtype} on {face.device}, the reaction {reaction.dtype} on {reaction.device}; "
                f"all arrays of a stencil must agree: convert them with `.to(...)`"
            )
    if not reaction.is_floating_point():
        raise ValueError(f"a stencil of {reaction.dtype}; its arrays must be float32 or float64")
    if active is not None:
        _check_active(active, reaction)


def _check_active(active: Tensor, like: Tensor) -> None:
    fits = active.shape[1:] == like.shape[1:] and active.ndim == like.ndim and active.shape[0] in (1, like.shape[0])
    if active.dtype != torch.bool or not fits or active.device != like.device:
        raise ValueError(
            f"`active` is {active.dtype} of shape {tuple(active.shape)} on {active.device}; it must be bool of shape "
            f"[{like.shape[0]} or 1, {', '.join(map(str, like.shape[1:]))}] on {like.device}"
        )


def _first(wrong: Tensor) -> tuple[int, ...] | None:
    """Where the first True stands, or None."""
    if not bool(wrong.any()):
        return None
    return tuple(int(i) for i in wrong.nonzero()[0])
