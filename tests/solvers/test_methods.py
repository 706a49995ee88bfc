import re

import pytest

from forebay.pipeline.errors import StudyError
from forebay.solvers.methods import NATIVE_UNKNOWNS, Method


@pytest.mark.parametrize(
    ("options", "symmetry", "unknowns", "label"),
    [
        ({}, "spd", 4096, "direct:petsc-cholesky"),
        ({}, "symmetric", 4096, "direct:petsc-lu"),
        ({}, "general", 4096, "direct:petsc-lu"),
        ({}, "spd", NATIVE_UNKNOWNS, "direct:petsc-cholesky"),
        ({}, "spd", NATIVE_UNKNOWNS + 1, "direct:mumps-cholesky"),
        ({"factor": "petsc"}, "spd", NATIVE_UNKNOWNS + 1, "direct:petsc-cholesky"),
        ({"factor": "mumps"}, "spd", 9, "direct:mumps-cholesky"),
        ({"factor": "mumps"}, "symmetric", 9, "direct:mumps-ldlt"),
        ({"factor": "mumps"}, "general", 9, "direct:mumps-lu"),
        ({"method": "cg"}, "spd", 9, "cg+gamg"),
        ({"method": "cg", "preconditioner": "eisenstat"}, "spd", 9, "cg+eisenstat"),
        ({"method": "gmres"}, "general", 9, "gmres+ilu"),
        ({"method": "bcgsl"}, "general", 9, "bcgsl+ilu"),
        ({"method": "minres"}, "symmetric", 9, "minres+jacobi"),
        ({"method": "minres", "preconditioner": "icc"}, "spd", 9, "minres+icc"),
        ({"method": "gcrodr"}, "symmetric", 9, "gcrodr+ilu"),
        ({"method": "gcrodr", "fill": 2}, "general", 9, "gcrodr+ilu(2)"),
        ({"method": "lgmres"}, "general", 9, "lgmres+ilu"),
        ({"method": "deflated_cg"}, "spd", 9, "deflated_cg+icc"),
        ({"method": "cg", "preconditioner": "eisenstat", "omega": 1.8}, "spd", 9, "cg+eisenstat(1.8)"),
        (
            {"method": "cg", "preconditioner": "cholesky", "reuse": "preconditioner"},
            "spd",
            9,
            "cg+cholesky:reused",
        ),
    ],
)
def test_a_method_is_made_concrete_by_kind_and_size_of_the_matrix(options, symmetry, unknowns, label):
    found = Method(**options).resolve(symmetry, unknowns).label
    assert found == label
    assert len(found.split()) == 1, "data sets separate the names of methods by blanks"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cgg"}, "solver.method = 'cgg' does not exist; did you mean 'cg'?"),
        ({"method": "simplex"}, "choose from direct, cg, deflated_cg, gmres, lgmres, gcrodr, bcgsl, minres"),
        (
            {"method": "cg", "preconditioner": "gmag"},
            "solver.preconditioner = 'gmag' does not exist; did you mean 'gamg'?",
        ),
        ({"factor": "pastix"}, "solver.factor = 'pastix' does not exist; choose from auto, petsc, mumps"),
        ({"rtol": 1e-17}, "solver.rtol = 1e-17 must be at least 1e-14"),
        ({"rtol": 1.0}, "solver.rtol = 1.0 must be .* below 1; try 1e-8"),
        ({"max_iterations": 0}, "solver.max_iterations = 0 must be at least 1"),
        ({"restart": -3}, "solver.restart = -3 must be at least 1"),
        ({"preconditioner": "icc"}, "'icc' has no use with solver.method = 'direct'; leave it out"),
        ({"method": "cg", "factor": "mumps"}, "solver.factor = 'mumps' has no use with solver.method = 'cg'"),
        ({"method": "gmres", "preconditioner": "eisenstat"}, "works with method = 'cg' only, not 'gmres'; use 'sor'"),
        (
            {"method": "cg", "preconditioner": "asm"},
            "'asm' is not symmetric, which 'cg' needs; use 'bjacobi' or 'gamg'",
        ),
        (
            {"options": {"pc_type": "lu"}},
            "solver.options.pc_type = 'lu' would go unnoticed .* set solver.preconditioner",
        ),
        ({"method": "gmres", "preconditioner": "lu"}, "'lu' solves exactly, .* or reuse = 'preconditioner'"),
        ({"reuse": "preconditioner"}, "solver.reuse = 'preconditioner' has no use with solver.method = 'direct'"),
        ({"method": "cg", "omega": 1.5}, "solver.omega = 1.5 has no use with preconditioner = 'gamg'"),
        ({"method": "cg", "preconditioner": "sor", "omega": 2.0}, "solver.omega = 2.0 must lie between 0 and 2"),
        ({"method": "cg", "fill": 1}, "solver.fill = 1 has no use with preconditioner = 'gamg'"),
        ({"method": "gmres", "fill": 11}, "solver.fill = 11 must lie in 0 ... 10"),
        ({"method": "gmres", "recycle": 5}, "solver.recycle = 5 has no use with solver.method = 'gmres'"),
        ({"method": "gcrodr", "recycle": 79}, "solver.recycle = 79 does not fit solver.restart = 80"),
        ({"method": "cg", "restart": 50}, "solver.restart = 50 has no use with solver.method = 'cg'"),
        ({"variant": "exact"}, "solver.variant = 'exact' has no use with solver.method = 'direct'"),
        (
            {"method": "cg", "options": {"ksp_initial_guess_nonzero": True}},
            "solver.options.ksp_initial_guess_nonzero = True is not allowed: a sample must not depend on those solved",
        ),
        (
            {"method": "cg", "options": {"ksp_reuse_preconditioner": True}},
            "would go unnoticed .* set solver.reuse",
        ),
        ({"options": {"-pc_gamg_threshold": 1}}, "'-pc_gamg_threshold'; write PETSc option names without the dash"),
    ],
)
def test_an_impossible_method_is_refused_with_its_remedy(options, message):
    with pytest.raises(StudyError, match=message):
        Method(**options)


@pytest.mark.parametrize(
    ("options", "symmetry", "message"),
    [
        ({"method": "cg"}, "general", "'cg' needs a symmetric positive definite matrix, the problem's is general"),
        ({"method": "cg"}, "symmetric", "the problem's is symmetric; use minres, gmres, bcgsl or direct"),
        ({"method": "minres"}, "general", "'minres' needs a symmetric matrix, .* use gmres, bcgsl or direct"),
        (
            {"method": "gmres", "preconditioner": "icc"},
            "symmetric",
            "'icc' needs a symmetric positive definite .* 'ilu'",
        ),
        ({"method": "minres", "preconditioner": "icc"}, "symmetric", "'icc' needs a symmetric positive definite"),
        ({"method": "minres", "preconditioner": "sor"}, "symmetric", "'sor' is not positive definite on an indefinite"),
    ],
)
def test_a_method_that_does_not_fit_the_matrix_is_refused(options, symmetry, message):
    method = Method(**options)
    with pytest.raises(StudyError, match=message):
        method.resolve(symmetry, 64)


def test_a_message_holds_one_sentence_without_braces():
    with pytest.raises(StudyError) as caught:
        Method("cg", "hypree")
    assert not re.search(r"[{}]", str(caught.value))
