"""The unmodified CUDA sources under Address- and UndefinedBehaviorSanitizer, and with faults planted in them."""

import pytest
from suites.kernel_families import FAMILIES
from suites.kernel_mutants import MUTANTS
from suites.kernel_process import findings, start_findings

# A minute of two free cores, on a machine that has compiled nothing yet and is busy with other work much more.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def processes(kernel_cache):
    """Both at the same time; each needs about one core."""
    started = {what: start_findings(kernel_cache, what) for what in ("mutants", "clean")}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def clean(processes):
    return findings(processes["clean"])


@pytest.fixture(scope="module")
def planted(processes):
    return findings(processes["mutants"])


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_agree_with_numpy_in_any_order_of_threads(clean, family):
    assert clean[family] is None, clean[family]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_caught(planted, mutant):
    verdict, reason = planted[mutant.name]
    assert verdict == "caught", reason or "all checks pass with it"


def test_every_mutant_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
