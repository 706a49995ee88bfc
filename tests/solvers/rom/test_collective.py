"""What ranks agree on, with ranks as threads; the algebra of reduction on two real processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from suites.integrand_cases import cloud
from suites.thread_ranks import on_ranks

from forebay.solvers.rom.collective import from_root, lead, refuse, total
from forebay.solvers.rom.cubature import integrals


class Helper:
    """Fails on one rank."""

    def __init__(self, comm):
        self.comm = comm

    def divide(self, value):
        return value / (2 - self.comm.rank)


def test_an_error_of_the_leader_or_of_a_helper_is_raised_on_all_ranks():
    assert on_ranks(2, lambda comm: lead(comm, Helper(comm), lambda ask: ask("divide", 6))) == [[3.0, 6.0]] * 2
    with pytest.raises(ZeroDivisionError):
        on_ranks(3, lambda comm: lead(comm, Helper(comm), lambda ask: ask("divide", 6)))
    with pytest.raises(KeyError, match="7"):
        on_ranks(3, lambda comm: lead(comm, Helper(comm), lambda ask: {}[7]))
    with pytest.raises(KeyError, match="11"):
        on_ranks(2, lambda comm: from_root(comm, lambda: {}[11]))


def test_sums_have_the_same_bits_on_all_ranks():
    rng = np.random.default_rng(7)
    values = rng.standard_normal((3, 50)) * 10.0 ** rng.integers(-8, 8, (3, 50))
    sums = on_ranks(3, lambda comm: total(comm, values[comm.rank]))
    assert np.array_equal(sums[0], sums[1])
    assert np.array_equal(sums[0], sums[2])
    assert np.allclose(sums[0], values.sum(axis=0), rtol=1e-10)


def test_integrals_are_sums_over_the_ranks():
    case = cloud()
    matrix, target = case.integrands()
    parts = np.split(np.arange(1500), [200, 900])
    found = on_ranks(3, lambda comm: integrals(matrix[:, parts[comm.rank]], case.weights[parts[comm.rank]], comm))
    assert np.allclose(found[0], target, rtol=1e-10, atol=1e-12 * np.abs(target).max())


def test_the_first_complaint_is_raised_on_all_ranks():
    assert on_ranks(3, lambda comm: refuse(comm, "")) == [None] * 3
    with pytest.raises(ValueError, match=r"too hot 1 \(on rank 1\)"):
        on_ranks(3, lambda comm: refuse(comm, f"too hot {comm.rank}" if comm.rank else ""))


@pytest.mark.mpi
def test_two_processes_agree_with_one(tmp_path):
    """POD, its update, cubature and Q-DEIM under mpiexec."""
    found = {}
    for ranks in (1, 2):
        target = tmp_path / f"{ranks}.npz"
        subprocess.run(
            [
                *(Path(sys.executable).with_name("mpiexec"), "-n", str(ranks)),
                *(sys.executable, Path(__file__).with_name("algebra_parallel.py"), target),
            ],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"} | {"PYTHONPATH": str(Path(__file__).parents[2])},
            timeout=120,
        )
        found[ranks] = dict(np.load(target))
    one, two = found[1], found[2]
    for name in ("modes", "extended"):
        assert np.allclose(one[name], two[name], atol=1e-10)
    assert np.allclose(one["singular_values"], two["singular_values"], rtol=1e-12)
    assert sorted(one["qdeim"]) == sorted(two["qdeim"])
    assert sorted(one["global_points"]) == sorted(two["global_points"])
    matrix, target = cloud().integrands()
    missed = matrix[:, two["points"]] @ two["weights"] - target
    assert np.linalg.norm(missed) <= 1e-3 * np.linalg.norm(target)
    assert abs(len(two["points"]) - len(one["points"])) <= 0.05 * len(one["points"]) + 1
    assert "snapshot 3 holds NaN" in str(two["message"])
