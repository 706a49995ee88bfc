"""A bar with a neck that is pulled while a hot spot comes and goes: the small benchmark of solid mechanics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.records import Parameter, Schema
from forebay.pipeline.stages import Draw
from forebay.solvers.fem.solid import SolidModel
from forebay.solvers.fem.solid_fields import HexahedralFields
from forebay.solvers.fem.solid_mesh import distribute, necked_bar_arrays
from forebay.solvers.fem.solid_types import Support, UnitLoad
from forebay.solvers.materials.catalogue import law_of
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import Law
from forebay.solvers.problems.options import Positive, check_range
from forebay.solvers.problems.programme import (
    COLD,
    Cycles,
    Frames,
    Programme,
    Steps,
    Temperature,
    YieldFactor,
    warming,
)

LENGTH, WIDTH = 40.0, 10.0
"""[mm]"""
_NECK = 0.3
"""Part of the width that the middle lacks."""
_SPOT_LENGTH = 14.0
"""Over which the hot spot's temperature falls to 1/e, [mm]."""
_UPPER_SIDE = 0.15
"""Slope of the temperature across the bar: relative excess at a distance of one width."""
_RAMP = 0.25
"""Part of the first cycle after which the traction is reached."""

Count = Annotated[int, Limit(ge=2, le=256)]
Position = Annotated[float, Limit(ge=0, le=LENGTH, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class HotSpot:
    """T(x, t) = 20 °C + (T_max - 20 °C) w(t / duration) exp(-((x - x_c) / 14 mm)²) (1 + 0.15 y / 10 mm)."""

    maximum: float
    """T_max, reached on the axis, [°C]."""
    position: float
    """x_c, [mm]."""
    duration: float
    """Of a cycle, [s]."""

    def __call__(self, positions: np.ndarray, time: float) -> np.ndarray:
        """Temperatures (n,) [°C] at positions (n, 3) [mm]."""
        x, y, _ = positions.T
        along = np.exp(-(((x - self.position) / _SPOT_LENGTH) ** 2))
        amplitude = (self.maximum - COLD) * warming(time / self.duration)
        return np.asarray(COLD + amplitude * along * (1 + _UPPER_SIDE * y / WIDTH))


@dataclass(frozen=True, kw_only=True)
class NeckedBar:
    r"""-∇·σ = 0 in a square bar with a neck, σ from Chaboche's law; pulled at one end, heated locally, in cycles.

    A bar of 40 mm along x, 10 mm wide and centred on the x axis, whose width is 10 mm (1 - 0.3 exp(-((x - 20)/6)²)): at
    the middle the area is 49 % of that at the ends.  u_x = 0 at x = 0, where u_y = 0 along the edge of least y and
    u_z = 0 along that of least z, so that the end may contract; σ n = P(t) e_x at x = 40 mm; small strains.  Trilinear
    hexahedra with 2³ Gauss points, backward Euler, Newton's method.  In cycles s = t / `duration`:

        P(t) = `traction` · s / 0.25 up to s = 0.25, then `traction` (1 + |cos 2π(s - 0.25)|) / 2,
        T(x, t) = 20 °C + (`temperature` - 20 °C) (1 - cos 2πs)/2 exp(-((x - `position`)/14 mm)²) (1 + 0.15 y/10 mm),

    and the yield stress is that of the law times `yield_factor`.  These four are the parameters, uniform in their
    ranges.  The law is `materials.chaboche.Chaboche` with its defaults, steel or a nickel alloy in kind: E 200 GPa, R₀
    150 MPa, K 300 MPa s^(1/8), C 60 GPa, D 400, all falling with temperature.
    Outputs u (node, component) [mm] and p (cell,), the accumulated plastic strain as the mean over a cell's
    volume, at `frames` evenly spaced times, the last one included.

    Good values: the defaults.  With them the largest p lies between 0.05 % and 1.5 % at every corner of the ranges, and
    no step is cut.  24 x 6 x 6 cells are 3,675 unknowns; 12 x 4 x 4 do for a trial.

    Raises:
        StudyError: a range whose low is not below its high, or more frames than steps.
    """

    cells: tuple[Count, Count, Count] = (24, 6, 6)
    """Hexahedra along x, y and z."""
    steps: Steps = 40
    """Time steps a cycle; a multiple of 4 has one end where the ramp does."""
    cycles: Cycles = 1
    duration: Positive = 2.0
    """Of a cycle, [s]."""
    frames: Frames = 10
    """Times that are kept of a sample."""
    traction_low: Positive = 160.0
    """[MPa], at the wide end; about twice as much in the neck."""
    traction_high: Positive = 240.0
    temperature_low: Temperature = 400.0
    """[°C]"""
    temperature_high: Temperature = 800.0
    position_low: Position = 8.0
    """[mm]"""
    position_high: Position = 32.0
    yield_low: YieldFactor = 0.85
    yield_high: YieldFactor = 1.15

    def __post_init__(self) -> None:
        for name in ("traction", "temperature", "position", "yield"):
            check_range(name, getattr(self, f"{name}_low"), getattr(self, f"{name}_high"))
        self._programme()

    @property
    def schema(self) -> Schema:
        """Four parameters in, displacements and plastic strains out; made without DOLFINx."""
        return Schema(
            parameters=(
                Parameter("traction", self.traction_low, self.traction_high, "MPa", description="P at its largest"),
                Parameter("temperature", self.temperature_low, self.temperature_high, "°C", description="of hot spot"),
                Parameter("position", self.position_low, self.position_high, "mm", description="x of the hot spot"),
                Parameter("yield_factor", self.yield_low, self.yield_high, description="of the yield stress"),
            ),
            inputs=(),
            outputs=self._fields.outputs,
            coordinates=self._fields.coordinates,
            times=self._programme().stored_times,
            boundary_conditions="u_x = 0 at x = 0, traction P(t) e_x at x = 40 mm, no traction on the other sides",
        )

    @property
    def law(self) -> Law:
        """Chaboche's with its defaults."""
        return law_of("chaboche")

    @property
    def stored_steps(self) -> np.ndarray:
        """(frames,), int64."""
        return self._programme().stored_steps

    def model(self, comm: Any, *, rtol: float = 1e-8) -> SolidModel:
        """The full model over a communicator; collective."""
        mesh = distribute(comm, lambda: self._fields.mesh)
        supports = [Support("x_min", "x"), Support("x_min & y_min", "y"), Support("x_min & z_min", "z")]
        loads = [UnitLoad("traction", "traction", where="x_max", vector=(1.0, 0.0, 0.0))]
        return SolidModel(mesh, supports, loads, rtol=rtol, name="necked_bar")

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Nothing but the parameters is random."""
        return {}

    def history(self, draw: Draw) -> History:
        """Of the parameters (traction, temperature, position, yield_factor)."""
        traction, temperature, position, factor = (float(value) for value in draw["parameters"])
        law = self.law
        constants = {**law.constants, "yield_stress": factor * law.constants["yield_stress"]}
        times = self._programme().times
        return History(
            times=times,
            loads=traction * _pull(times / self.duration)[:, None],
            displacements=np.zeros((len(times), 0)),
            temperature=HotSpot(temperature, position, self.duration),
            law=law_of(law.name, constants),
        )

    def fields(self, displacement: np.ndarray, p: np.ndarray) -> Mapping[str, np.ndarray]:
        """Fields u (t, n, 3) and p (t, c) from u (t, 3 n) and p (t, 8 c)."""
        return self._fields.fields(displacement, p)

    def __getstate__(self) -> dict[str, object]:
        # Options alone travel to another process; the mesh is made anew there.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _programme(self) -> Programme:
        return Programme(self.steps, self.cycles, self.duration, self.frames)

    @functools.cached_property
    def _fields(self) -> HexahedralFields:
        return HexahedralFields(necked_bar_arrays(self.cells, LENGTH, WIDTH, _NECK))


def _pull(cycles: np.ndarray) -> np.ndarray:
    """Traction over its largest value, after so many cycles."""
    held = 0.5 + 0.5 * np.abs(np.cos(2 * np.pi * (cycles - _RAMP)))
    return np.asarray(np.where(cycles < _RAMP, cycles / _RAMP, held))
