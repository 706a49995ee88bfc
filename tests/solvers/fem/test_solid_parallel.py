import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from suites.solid_cases import alone

from forebay.solvers.fem.solid_mesh import plate_with_hole
from forebay.solvers.fem.solid_mesh_file import write_mesh

SCRIPT = Path(__file__).with_name("solid_parallel.py")
FIELDS = ("displacement", "stress", "p", "loads", "lifts", "mass", "positions", "weights", "strains")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solid")
    write_mesh(plate_with_hole(alone(), (4, 4, 1)), folder / "plate.xdmf")
    found = {}
    for ranks in (1, 2):
        target = folder / f"{ranks}.npz"
        mpiexec = Path(sys.executable).with_name("mpiexec")
        subprocess.run(
            [mpiexec, "-n", str(ranks), sys.executable, SCRIPT, target, folder / "plate.xdmf"],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            timeout=120,
        )
        found[ranks] = dict(np.load(target))
    return found


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["bar", "cut", "quadratic", "file"])
def test_two_processes_find_what_one_finds(runs, case):
    assert runs[2][f"{case} least rows"] < runs[1][f"{case} least rows"]
    assert runs[1][f"{case} p"].max() > 1e-4
    for field in FIELDS:
        one, two = runs[1][f"{case} {field}"], runs[2][f"{case} {field}"]
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-12 * np.abs(one).max(initial=0.0), err_msg=field)
    np.testing.assert_array_equal(runs[1][f"{case} iterations"], runs[2][f"{case} iterations"])


@pytest.mark.mpi
def test_multigrid_on_two_processes_agrees_within_its_tolerance(runs):
    one, two = (runs[ranks]["gamg displacement"] for ranks in (1, 2))
    assert np.abs(two - one).max() < 1e-7 * np.abs(one).max()
    direct = runs[1]["bar displacement"]
    assert np.abs(one - direct).max() < 1e-7 * np.abs(direct).max()


@pytest.mark.mpi
def test_a_law_that_fails_on_one_process_cuts_the_step_on_all(runs):
    iterations = runs[2]["cut iterations"]
    assert iterations[:, 2].max() >= 1
    assert iterations[:, 1].max() >= 2
    assert runs[2]["bar iterations"][:, 2].max() == 0
