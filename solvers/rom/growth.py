"""How a library grows: by whole simulations, by single steps, by models for clusters of simulations.

Everything here is collective over the model's communicator; the first process holds the library's lock meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forebay.pipeline.stages import Draw
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.basis import Run, Settings, basis_of
from forebay.solvers.rom.clusters import Decision
from forebay.solvers.rom.collective import from_root
from forebay.solvers.rom.full_steps import FullSteps
from forebay.solvers.rom.kept_samples import KeptSamples
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.local_models import ask_for_local, is_due, is_over
from forebay.solvers.rom.offline import Origin, Reduced, calibrated, enrich, make_package

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel


@dataclass(frozen=True, slots=True)
class Place:
    """One of the models of a version: which, or None for the one of all samples."""

    version: int
    cluster: int | None = None


def place_of(decision: Decision | None, version: int, draw: Draw) -> Place:
    """Which model a version's decision chooses for a sample."""
    return Place(version, None if decision is None else decision.choose(draw["parameters"]).cluster)


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """A library, how fine its models are, and the problem whose samples they learn."""

    library: Library
    settings: Settings
    name: str
    """Of the problem."""
    problem: SolidProblem

    def place(self, version: int, draw: Draw) -> Place:
        """Which of a version's models serves a sample."""
        return place_of(self.library.decision(version), version, draw)

    def origin(self, version: int) -> Origin:
        """Of a version's package."""
        ranges = {parameter.name: (parameter.low, parameter.high) for parameter in self.problem.schema.parameters}
        return Origin(self.name, self.problem.law, ranges, version)

    def known(self, model: SolidModel, place: Place) -> Reduced:
        """Package and basis of a place; collective."""
        return self.library.reduced(place.version, model, self.problem.law, place.cluster)

    def learn_run(self, model: SolidModel, draw: Draw, run: Run) -> int:
        """Publish the version that knows one more simulation; its number, or that of one with local models after it.

        Raises:
            CubatureError: the enriched cubature misses its tolerance.
            DatasetError: the disk is full.
        """
        with self._locked(model.comm) as latest:
            origin = self.origin(latest + 1)
            if latest == 0:
                self.library.publish(model, make_package(model, basis_of(model, [run], self.settings), origin))
            else:
                place = self.place(latest, draw)
                reduced = enrich(model, self.known(model, place), [run], origin, rough=not _thins(origin.version))
                self.library.publish(model, reduced, place.cluster)
            return self._considered(model, draw, run, origin.version)

    def learn_steps(self, model: SolidModel, draw: Draw, steps: FullSteps, base: Place) -> int:
        """Publish the version that knows the full steps of a simulation that began with the model of `base`.

        Where another solver has published meanwhile, its version learns the steps.

        Raises:
            CubatureError, DatasetError: as `learn_run`.
        """
        with self._locked(model.comm) as latest:
            place, origin = self.place(latest, draw), self.origin(latest + 1)
            rough = not _thins(origin.version)
            if place == base and rough:
                package = replace(steps.reduced.package, version=origin.version)
                reduced = replace(steps.reduced, package=package)
            else:
                known = self.known(model, place)
                basis = steps.reduced.basis if place == base else known.basis.extended(model, steps.runs)
                calibration = known.package.calibration
                for pairs in steps.pairs:
                    calibration = calibration.update(pairs)
                reduced = calibrated(make_package(model, basis, origin, rough=rough), calibration)
            self.library.publish(model, reduced, place.cluster)
            return origin.version

    def _considered(self, model: SolidModel, draw: Draw, run: Run, version: int) -> int:
        """Keep the simulation as long as local models are open, and ask for them when it is time."""
        bases, comm = self.settings.bases, model.comm
        kept = KeptSamples(self.library.folder)
        closed, _ = from_root(comm, lambda: (is_over(self.library, bases), [None] * comm.size))
        if closed:
            return version
        count = kept.add(model, draw, run.trajectory.displacement)
        if is_due(count, bases):
            version = ask_for_local(model, self.problem, self.library, self.settings, self.origin(version + 1))
            closed, _ = from_root(comm, lambda: (is_over(self.library, bases), [None] * comm.size))
            if closed:
                kept.clear(model)
        return version

    @contextlib.contextmanager
    def _locked(self, comm: Any) -> Iterator[int]:
        """The latest version, while nobody else can publish."""
        with self.library.locked() if comm.rank == 0 else contextlib.nullcontext():
            latest, _ = from_root(comm, lambda: (self.library.latest, [None] * comm.size))
            yield latest
            comm.barrier()


def _thins(version: int) -> bool:
    """Is the cubature selected anew?  At powers of two: points that have become superfluous are rid of now and then."""
    return version & (version - 1) == 0
