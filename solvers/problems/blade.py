"""A cooled turbine blade through take-off, cruise and landing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import Parameter, Schema
from forebay.pipeline.stages import Draw
from forebay.solvers.fem import blade_mesh
from forebay.solvers.fem.mesh_arrays import MeshArrays
from forebay.solvers.fem.solid import SolidModel
from forebay.solvers.fem.solid_fields import HexahedralFields
from forebay.solvers.fem.solid_mesh import distribute
from forebay.solvers.fem.solid_types import Support, UnitLoad
from forebay.solvers.materials.catalogue import law_of
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import Law
from forebay.solvers.problems.blade_temperature import BladeTemperature
from forebay.solvers.problems.options import Positive, check_range
from forebay.solvers.problems.programme import Cycles, Frames, Programme, Steps, Temperature, YieldFactor

AXIS, HUB = (1.0, 0.0, 0.0), (0.0, 0.0, -300.0)
"""The engine's axis: its direction and a point of it, [mm]; the root is 300 mm off."""
DENSITY = 8.2e-9
"""[t/mm³]"""
CONSTANTS = {
    "young": 210e3,
    "young_slope": 0.25,
    "poisson": 0.3,
    "expansion": 1.4e-5,
    "yield_stress": 200.0,
    "yield_stress_slope": 0.75,
    "hardening": 500.0,
    "kinematic": 90e3,
    "kinematic_slope": 0.7,
    "recall": 600.0,
    "viscosity": 300.0,
    "viscosity_slope": 0.7,
    "exponent": 8.0,
}
"""Of `materials.chaboche.Chaboche`: a cast nickel alloy in kind, no certified one."""
_IDLE = 0.3
"""Speed between two flights, relative to the highest."""
_FLIGHT = (0.0, 0.25, 0.75, 1.0)
"""Ends of take-off, cruise and landing, as parts of a cycle."""

Height = Annotated[float, Limit(ge=0, le=blade_mesh.HEIGHT, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Blade:
    r"""-∇·σ = 0 in a turbine blade with cooling holes, σ from Chaboche's law; spun, pressed and heated, in cycles.

    The blade of `fem.blade_mesh`: 60 mm along z, a chord of 40 mm, twisted, tapered, with three holes along it; clamped
    at its root.  The engine's axis runs along x through (0, 0, -300) mm.  Body force ρ ω(t)² r with ρ = 8.2e-9 t/mm³
    and r the distance vector from the axis, pressure P(t) on the pressure side, temperature of `BladeTemperature`;
    small strains.  Trilinear hexahedra with 2³ Gauss points, backward Euler, Newton's method.  In cycles
    s = t / `duration` speed rises linearly up to s = 0.25, from rest or from idle (30 %), stays up to s = 0.75, and
    falls to idle:

        ω(t) = ω_max f(s),  P(t) = `pressure` f(s)²,  T - 20 °C follows (1 - cos 2πs)/2,

    and the yield stress is that of the law times `yield_factor`.  Parameters, uniform in their ranges: speed 60 ω_max /
    2π [rpm], pressure [MPa], temperature T_max [°C], height of the hottest section [mm] and yield_factor [1].
    The law is `materials.chaboche.Chaboche` with `CONSTANTS`, chosen like those of a cast nickel alloy and of no
    certified one: E 210 GPa, R₀ 200 MPa, K 300 MPa s^(1/8), C 90 GPa, D 600, α 1.4e-5/°C; hot, it is soft and creeps.
    Outputs u (node, component) [mm] and p (cell,), the accumulated plastic strain as the mean over a cell's
    volume, at `frames` evenly spaced times, the last one included.

    Good values: the defaults, 13,260 unknowns; `layers = 6` with `steps = 16` costs an eighth, for trials.  With
    these the largest p lies between 0.05 % and 0.6 % at every corner of the ranges, and no step is cut; with the
    defaults, at the two extreme ones, it is 0.07 % and 0.6 %.

    Raises:
        StudyError: a range whose low is not below its high, more frames than steps, or a `size` without Gmsh.
    """

    size: Annotated[float, Limit(ge=0.5, le=4, allow_inf_nan=False)] = blade_mesh.SECTION_SIZE
    """Edge length in the section, [mm]; other sizes than the default need Gmsh."""
    layers: Annotated[int, Limit(ge=2, le=256)] = blade_mesh.LAYERS
    """Hexahedra along z; with fewer than 6 they are too long for the bending that uneven heating causes."""
    steps: Steps = 40
    """Time steps a cycle; with a multiple of 4 none contains a change of course."""
    cycles: Cycles = 1
    duration: Positive = 60.0
    """Of a cycle, [s]."""
    frames: Frames = 10
    """Times that are kept of a sample."""
    speed_low: Positive = 11_000.0
    """[rpm]"""
    speed_high: Positive = 13_000.0
    pressure_low: Positive = 0.2
    """[MPa]"""
    pressure_high: Positive = 1.0
    temperature_low: Temperature = 600.0
    """[°C]"""
    temperature_high: Temperature = 850.0
    height_low: Height = 15.0
    """[mm]"""
    height_high: Height = 45.0
    yield_low: YieldFactor = 0.9
    yield_high: YieldFactor = 1.1

    def __post_init__(self) -> None:
        for name in ("speed", "pressure", "temperature", "height", "yield"):
            check_range(name, getattr(self, f"{name}_low"), getattr(self, f"{name}_high"))
        self._programme()

    @property
    def schema(self) -> Schema:
        """Five parameters in, displacements and plastic strains out; made without DOLFINx."""
        return Schema(
            parameters=(
                Parameter("speed", self.speed_low, self.speed_high, "rpm", description="at cruise"),
                Parameter("pressure", self.pressure_low, self.pressure_high, "MPa", description="at cruise"),
                Parameter("temperature", self.temperature_low, self.temperature_high, "°C", description="T_max"),
                Parameter("height", self.height_low, self.height_high, "mm", description="z of the hottest section"),
                Parameter("yield_factor", self.yield_low, self.yield_high, description="of the yield stress"),
            ),
            inputs=(),
            outputs=self._fields.outputs,
            coordinates=self._fields.coordinates,
            times=self._programme().stored_times,
            boundary_conditions="u = 0 at the root, pressure on the pressure side, no traction elsewhere",
        )

    @property
    def law(self) -> Law:
        """Chaboche's with `CONSTANTS`."""
        return law_of("chaboche", CONSTANTS)

    @property
    def stored_steps(self) -> np.ndarray:
        """(frames,), int64."""
        return self._programme().stored_steps

    def model(self, comm: Any, *, rtol: float = 1e-8) -> SolidModel:
        """The full model over a communicator; collective."""
        mesh = distribute(comm, lambda: self._fields.mesh)
        loads = [
            UnitLoad("centrifugal", "centrifugal", vector=AXIS, point=HUB),
            UnitLoad("pressure", "pressure", where="pressure_side"),
        ]
        return SolidModel(mesh, [Support("root")], loads, rtol=rtol, name="blade")

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Nothing but the parameters is random."""
        return {}

    def history(self, draw: Draw) -> History:
        """Of the parameters (speed, pressure, temperature, height, yield_factor)."""
        speed, pressure, temperature, height, factor = (float(value) for value in draw["parameters"])
        times = self._programme().times
        highest = np.array([DENSITY * (speed * 2 * np.pi / 60) ** 2, pressure])
        return History(
            times=times,
            loads=np.outer(_speed(times / self.duration) ** 2, highest),
            displacements=np.zeros((len(times), 0)),
            temperature=BladeTemperature(temperature, height, self.duration),
            law=law_of("chaboche", {**CONSTANTS, "yield_stress": factor * CONSTANTS["yield_stress"]}),
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
        return HexahedralFields(_mesh(self.size, self.layers))


def _speed(cycles: np.ndarray) -> np.ndarray:
    """Speed over its highest value, after so many cycles; the first starts from rest."""
    profile = np.interp(cycles % 1.0, _FLIGHT, (_IDLE, 1.0, 1.0, _IDLE))
    return np.where(cycles < _FLIGHT[1], cycles / _FLIGHT[1], profile)


def _mesh(size: float, layers: int) -> MeshArrays:
    try:
        return blade_mesh.blade_arrays(None if size == blade_mesh.SECTION_SIZE else size, layers)
    except ValueError as error:
        raise StudyError(
            f"problem.size = {size} cannot be meshed: {error}; or leave it at {blade_mesh.SECTION_SIZE}, whose mesh "
            f"comes with the package"
        ) from error
