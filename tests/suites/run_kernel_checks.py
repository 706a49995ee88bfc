"""Runs the checks of kernels under AddressSanitizer, in a process of its own; prints one JSON object.

    run_kernel_checks.py clean             {family: null, or what is wrong}: the unmodified sources, three seeds
    run_kernel_checks.py mutants           {mutant: ["caught", by what], ["survived", ""] or ["misplaced", why]}

Every check runs in a fork, since a sanitiser ends the process in which it finds something.
"""

import functools
import json
import os
import signal
import sys
import tempfile
import traceback

from suites.kernel_families import FAMILIES
from suites.kernel_mutants import MUTANTS, misplaced, plant

from forebay.kernels.host.build import build
from forebay.kernels.host.launcher import HostLauncher
from forebay.kernels.sources import source

SEEDS = (0, 7, 8, 11, 26)
"""Orders of the threads: as numbered, two where some warps run ahead, two at random."""
CLEAN_SEEDS = SEEDS[:3]
LIMIT_S = 60
"""Of processor time, which does not depend on what else the machine does."""


def fails(work):
    """None if `work` returns, else what went wrong: an exception, a sanitiser's finding, or no end."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            try:
                work()
                os._exit(0)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return None
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    summaries = [line for line in lines if "SUMMARY" in line or "runtime error" in line]
    ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no message"
    return (summaries or lines[-1:] or [ended])[0]


def run(family, launchers, mutant=0, changed=None):
    for seed in SEEDS if mutant else CLEAN_SEEDS:
        for launcher in launchers:
            launcher.seed = seed
            launcher.choose_mutant(mutant if launcher.name.startswith(f"{changed}-") else 0)
        try:
            FAMILIES[family].check(*launchers)
        except Exception as error:
            raise type(error)(f"seed {seed}: {error}") from error


def libraries(jobs):
    """Builds of (family, source, text), one after another: a thread of a pool that has just been joined may still free
    memory, and a fork then inherits the sanitiser's locked allocator and waits for ever."""
    return [build(name, FAMILIES[family].macros, sanitise=True, text=text) for family, name, text in jobs]


def clean():
    jobs = [(family, name, None) for family, one in FAMILIES.items() for name in one.sources]
    paths = dict(zip([job[:2] for job in jobs], libraries(jobs), strict=True))
    result = {}
    for family, one in FAMILIES.items():
        launchers = [HostLauncher.of_library(paths[family, name]) for name in one.sources]
        result[family] = fails(functools.partial(run, family, launchers))
    return result


def mutants():
    result, jobs, planted = {}, [], {}
    for family in dict.fromkeys(mutant.family for mutant in MUTANTS):
        for name in FAMILIES[family].sources:
            text = source(name)
            own = [mutant for mutant in MUTANTS if mutant.family == family and (mutant.source or name) == name]
            result |= {mutant.name: ["misplaced", misplaced(text, mutant)] for mutant in own}
            planted[family, name] = [mutant for mutant in own if misplaced(text, mutant) is None]
            jobs.append((family, name, plant(text, planted[family, name])))
    paths = dict(zip(planted, libraries(jobs), strict=True))
    for (family, name), own in planted.items():
        launchers = [HostLauncher.of_library(paths[family, other]) for other in FAMILIES[family].sources]
        # Checks that fail anyway would catch everything.
        if unfit := fails(functools.partial(run, family, launchers)):
            result |= {mutant.name: ["misplaced", f"without it: {unfit}"] for mutant in own}
            continue
        for number, mutant in enumerate(own, start=1):
            by = fails(
                lambda family=family, launchers=launchers, number=number, name=name: run(
                    family, launchers, number, name
                )
            )
            result[mutant.name] = ["survived", ""] if by is None else ["caught", by]
    return result


if __name__ == "__main__":
    json.dump({"clean": clean, "mutants": mutants}[sys.argv[1]](), sys.stdout)
