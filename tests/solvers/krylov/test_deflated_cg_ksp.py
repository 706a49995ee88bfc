"""Deflated CG as a PETSc solver of type python, and on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from suites.linear_cases import diffusion, helmholtz
from suites.spd_cases import SIDE, Sequence, drifting

from forebay.solvers.krylov.deflated_cg import DeflatedCg
from forebay.solvers.krylov.deflation_space import YOUNG
from forebay.solvers.krylov.ksp import DeflatedCgKsp
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc


def test_ksp_of_type_python_from_options():
    PETSc = petsc()
    sequence = drifting(3)
    prefix = "deflated_cg_options_"
    options = PETSc.Options(prefix)
    settings = {
        "ksp_type": "python",
        "ksp_python_type": "forebay.solvers.krylov.ksp.DeflatedCgKsp",
        "ksp_deflated_cg_recycle": 6,
        "ksp_deflated_cg_variant": "exact",
        "ksp_deflated_cg_search": 15,
        "ksp_deflated_cg_flexible": True,
        "ksp_rtol": 1e-9,
        "pc_type": "icc",
    }
    for name, value in settings.items():
        options.setValue(name, value)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(sequence.system.matrix)
    ksp.setFromOptions()
    ksp.setConvergenceHistory()
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.rhs)
    plain, space = DeflatedCg(recycle=6, search=15, variant="exact", flexible=True), None
    for k in range(3):
        expected, record, space = sequence.ready(plain, k).solve(sequence.rhs, space, rtol=1e-9)
        ksp.solve(b, x)
        assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.CONVERGED_RTOL
        assert ksp.getIterationNumber() == record.iterations
        assert np.array_equal(x.getArray(), expected)
        context = ksp.getPythonContext()
        assert context.record == record
        assert np.array_equal(context.space.vectors, space.vectors)
        assert ksp.getResidualNorm() == pytest.approx(record.residual * np.linalg.norm(sequence.rhs))
    assert len(ksp.getConvergenceHistory()) > 0
    for name in settings:
        options.delValue(name)


def test_ksp_says_why_it_stopped():
    PETSc = petsc()
    reasons = PETSc.KSP.ConvergedReason
    sequence = Sequence([diffusion(1, side=SIDE), helmholtz(1, side=SIDE)], "none", "symmetric")
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(sequence.system.matrix)
    ksp.setType("python")
    ksp.setPythonContext(DeflatedCgKsp(recycle=8))
    ksp.getPC().setType("none")
    ksp.setTolerances(rtol=1e-10, max_it=5)
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.rhs)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() == reasons.DIVERGED_MAX_IT
    ksp.setTolerances(max_it=1000)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() == reasons.CONVERGED_RTOL
    sequence.system.update({"k": 1, "rhs": sequence.rhs})
    ksp.solve(b, x)
    assert ksp.getConvergedReason() == reasons.DIVERGED_BREAKDOWN
    assert "indefinite" in ksp.getPythonContext().record.reason
    b.set(0.0)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    assert x.norm() == 0.0


def test_ksp_notices_a_new_matrix_under_an_old_space():
    sequence = drifting(2)
    plain = DeflatedCg(recycle=8)
    _, _, space = sequence.ready(plain).solve(sequence.rhs)
    old = RecycleSpace(space.vectors, YOUNG + 5)
    ksp = petsc().KSP().create(petsc().COMM_SELF)
    ksp.setOperators(sequence.system.matrix)
    ksp.setType("python")
    context = DeflatedCgKsp(recycle=8)
    ksp.setPythonContext(context)
    ksp.getPC().setType("icc")
    ksp.setTolerances(rtol=1e-8)
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.rhs)
    for k in (0, 1):
        expected, record, _ = sequence.ready(plain, k).solve(sequence.rhs, old)
        context.space = old
        ksp.solve(b, x)
        assert context.record == record
        assert np.array_equal(x.getArray(), expected)


def test_ksp_without_directions_reads_its_options():
    ksp = petsc().KSP().create(petsc().COMM_SELF)
    ksp.setType("python")
    ksp.setPythonContext(DeflatedCgKsp(recycle=0))
    sequence = drifting(1)
    ksp.setOperators(sequence.system.matrix)
    ksp.setFromOptions()
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.rhs)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    assert ksp.getPythonContext().space is None


@pytest.mark.mpi
@pytest.mark.parametrize("variant", ["exact", "economical"])
def test_two_processes_make_the_same_iterates(tmp_path, variant):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    script = Path(__file__).with_name("deflated_cg_parallel.py")
    found = {}
    for ranks in (1, 2):
        target = tmp_path / f"{ranks}.npz"
        subprocess.run(
            [mpiexec, "-n", str(ranks), sys.executable, script, target, variant],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=120,
        )
        found[ranks] = dict(np.load(target))
    assert found[1]["iterations"].tolist() == found[2]["iterations"].tolist()
    assert found[1]["iterations"][-1] < 0.9 * found[1]["iterations"][0]
    assert np.allclose(found[1]["history"], found[2]["history"], rtol=1e-6 if variant == "exact" else 1e-3)
    assert np.allclose(found[1]["x"], found[2]["x"], rtol=1e-7, atol=1e-9)
