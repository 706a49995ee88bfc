"""Claim: a run survives whatever is killed under it: no sample is lost, none is counted twice.

Solvers, the learner, the writer, whole nodes and the driver are killed with SIGKILL at random times, in random order; a
driver that ended is brought back with `forebay resume`.  In the end the data set has to be that of an undisturbed run
of the same study, bit for bit, and the training to have taken as many batches as were asked for.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos_monkey import VICTIMS, Monkey, Nodes, Outcome, inspect
from common import Report, number, parser, table

STUDY = """
name = "chaos"
seed = 314
samples = {samples}
[problem]
name = "darcy"
size = {size}
[solver]
actors = 2
[validation]
samples = 16
every = 200
[learner]
batch_size = 8
batches = {batches}
threads_after_production = 1
[learner.model]
name = "fno"
width = 8
modes = 4
layers = 2
[dataset]
block_samples = 16
[run]
executor = "ray"
cores = 2
checkpoint_every_s = 1
publish_every_s = 0.5
[faults]
restarts = 1000
"""


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--kills", type=int, help="default 50, with --quick 5")
    options_parser.add_argument("--seed", type=int, default=7)
    options_parser.add_argument("--keep", type=Path, help="folder for the runs and the drivers' output, not removed")
    options = options_parser.parse_args()
    kills = options.kills or (5 if options.quick else 50)
    report = Report("chaos", options, ("ray", "torch", "zarr"))
    # Long enough that the run is under way during every kill: recovering takes seconds, solving goes on meanwhile,
    # and training goes back to its last checkpoint with every learner that is lost.
    batches, samples = 100 * kills, 2_400 * kills
    with tempfile.TemporaryDirectory(prefix="forebay-chaos-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        study = folder / "chaos.toml"
        study.write_text(STUDY.format(samples=samples, batches=batches, size=32))
        begun = time.monotonic()
        words = [sys.executable, "-m", "forebay.cluster.cli", "run", str(study), "--folder", str(folder / "calm")]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        calm_s = time.monotonic() - begun
        rng = random.Random(options.seed)
        victims = [VICTIMS[i % len(VICTIMS)] for i in range(kills)]
        rng.shuffle(victims)
        nodes = Nodes(workers=2)
        try:
            outcome = Monkey(study, folder / "run", nodes, rng).rampage(victims)
        finally:
            nodes.close()
        inspect(folder / "run", folder / "calm", outcome)
    _tell(report, outcome, calm_s, samples, batches)
    broken = outcome.lost + outcome.doubled + outcome.missing + len(outcome.faults)
    gone = outcome.lost + outcome.missing
    figure = (
        f"{len(outcome.kills)} kills survived, {gone} samples lost, {outcome.doubled} doubled, "
        f"{number((outcome.seconds - calm_s) / len(outcome.kills))} s lost a kill"
    )
    return report.finish(figure, f">= {kills} kills, 0, 0", ok=not broken and len(outcome.kills) >= kills)


def _tell(report: Report, outcome: Outcome, calm_s: float, samples: int, batches: int) -> None:
    rows = []
    for victim in VICTIMS:
        times = [kill.recovery_s for kill in outcome.kills if kill.victim == victim]
        if times:
            rows.append((victim, len(times), number(statistics.median(times)), number(max(times))))
    report.say(table(("victim", "kills", "s to the next sign of life, median", "largest"), rows))
    report.say(
        f"\n{samples} samples, {batches} batches; {outcome.attempts} attempts; undisturbed {calm_s:.0f} s, under fire "
        f"{outcome.seconds:.0f} s. {outcome.missing} samples missing, {outcome.lost} differ from the undisturbed run's."
    )
    for fault in outcome.faults:
        report.say(f"broken: {fault}")


if __name__ == "__main__":
    sys.exit(main())
