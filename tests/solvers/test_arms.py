import pytest

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.study import SolverTable
from forebay.solvers.arms import Automatic, MatrixFacts, check_method, check_order, default_arms, facts_of, parse_method
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.heat import Heat


def facts(symmetry="spd", unknowns=4096, grid=(64, 64), row_entries=5.0):
    return MatrixFacts(symmetry, unknowns, grid, row_entries)


def labels(found):
    return [method.resolve("spd", 4096, structured=True).label for method in found]


@pytest.mark.parametrize("symmetry", ["spd", "symmetric", "general"])
@pytest.mark.parametrize("grid", [None, (64, 64), (16, 16, 16)])
def test_every_default_arm_fits_its_kind_of_matrix(symmetry, grid):
    kind = facts(symmetry, 4096, grid, 7.0)
    arms = Automatic(rtol=1e-6, max_iterations=77).resolve(kind)
    assert 3 <= len(arms) <= 7
    assert len({arm.resolve(symmetry, 4096, structured=grid is not None).label for arm in arms}) == len(arms)
    assert {(arm.rtol, arm.max_iterations) for arm in arms} == {(1e-6, 77)}
    factor = "petsc" if symmetry == "spd" and kind.dimension == 2 else "mumps"
    assert arms[0] == Method("direct", factor=factor, rtol=1e-6, max_iterations=77)


def test_what_cannot_win_at_a_size_is_not_tried():
    small = default_arms(facts(), rtol=1e-8, max_iterations=10)
    large = default_arms(facts(unknowns=110_592, grid=(48, 48, 48), row_entries=7.0), rtol=1e-8, max_iterations=10)
    assert {"direct:petsc-cholesky", "cg+mg"} <= set(labels(small))
    medium = default_arms(facts(unknowns=32_768, grid=None, row_entries=15.0), rtol=1e-8, max_iterations=10)
    assert "direct:mumps-cholesky" in labels(medium)
    assert "direct:petsc-cholesky" not in labels(medium)
    assert not any(label.startswith("direct") for label in labels(large))
    assert "cg+mg" not in labels(default_arms(facts(grid=None), rtol=1e-8, max_iterations=10))


@pytest.mark.parametrize(("row_entries", "dimension"), [(7.0, 2), (15.0, 3)])
def test_without_a_grid_the_row_length_tells_the_dimension(row_entries, dimension):
    assert facts(grid=None, row_entries=row_entries).dimension == dimension


def test_facts_are_read_off_the_problem():
    found = facts_of(Darcy(size=8))
    assert (found.symmetry, found.unknowns, found.grid) == ("spd", 64, (8, 8))
    assert found.row_entries == pytest.approx(5 - 4 / 8)


def test_a_grid_that_contradicts_the_pattern_is_refused():
    class Wrong(Darcy):
        grid_shape = (3, 3)

    with pytest.raises(ProblemError, match=r"\(3, 3\) has 9 cells, the matrix 64 unknowns; leave the property out"):
        facts_of(Wrong(size=8))


def test_the_study_s_table_is_a_method_or_the_automatic_choice():
    assert parse_method(SolverTable().model_dump()) == Method()
    table = SolverTable(method="gcrodr", preconditioner="ilu", fill=1, recycle=20, restart=50, sort=True, actors=3)
    assert parse_method(table.model_dump()) == Method("gcrodr", "ilu", fill=1, recycle=20, restart=50)
    assert parse_method(SolverTable(method="auto", rtol=1e-6).model_dump()) == Automatic(rtol=1e-6)


def test_a_study_may_name_its_arms():
    table = {"method": "auto", "rtol": 1e-5, "arms": [{"method": "direct"}, {"method": "cg", "preconditioner": "icc"}]}
    chosen = parse_method(SolverTable(**table).model_dump())
    assert chosen.arms == (Method(rtol=1e-5), Method("cg", "icc", rtol=1e-5))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"method": "auto", "omega": 1.5}, "solver.omega = 1.5 has no use with solver.method = 'auto', which chooses"),
        ({"method": "auto", "options": {"pc_gamg_threshold": 0.1}}, "solver.options = .* has no use with .* 'auto'"),
        ({"method": "cg", "arms": [{"method": "direct"}]}, "solver.arms has no use with solver.method = 'cg'"),
        ({"method": "auto", "arms": [{"method": "auto"}]}, r"solver.arms\[0\].method = 'auto' cannot be its own arm"),
        ({"method": "auto", "arms": [{"method": "cgg"}]}, r"solver.arms\[0\]: solver.method = 'cgg' does not exist"),
        ({"method": "auto", "arms": [{"metod": "cg"}]}, r"solver.arms\[0\].metod does not exist; an arm has factor"),
    ],
)
def test_what_contradicts_itself_is_refused(table, message):
    with pytest.raises(StudyError, match=message):
        parse_method(table)


def test_a_problem_in_time_is_solved_by_the_factor_that_its_steps_share():
    kind = facts_of(Heat(size=8))
    assert Automatic(rtol=1e-6).resolve(kind) == (Method(rtol=1e-6),)
    with pytest.raises(StudyError, match="'auto' has nothing to choose for a problem in time"):
        check_method(Automatic(arms=(Method(), Method("cg", "icc"))), kind)


def test_a_grid_too_thin_to_coarsen_has_no_multigrid_among_its_arms():
    assert "cg+mg" not in labels(default_arms(facts(unknowns=64, grid=(1, 64)), rtol=1e-8, max_iterations=10))


@pytest.mark.parametrize(
    ("method", "transient", "wanted", "message"),
    [
        (Method("cg"), True, {"sort": True}, "solver.sort = true has no use for a problem in time"),
        (Method("cg"), True, {"guesses": 4}, "solver.guesses = 4 has no use for a problem in time"),
        (Method(), False, {"guesses": 4}, "solver.guesses = 4 has no use with solver.method = 'direct'"),
    ],
)
def test_what_would_be_passed_over_in_silence_is_refused(method, transient, wanted, message):
    kind = MatrixFacts("spd", 4096, (64, 64), 5.0, transient)
    with pytest.raises(StudyError, match=message):
        check_order(method, kind, **{"sort": False, "guesses": 0, **wanted})
    check_order(method, kind, sort=False, guesses=0)


def test_an_arm_that_does_not_fit_the_matrix_is_refused_before_anything_is_solved():
    arms = (Method(), Method("cg", "icc"))
    with pytest.raises(StudyError, match="'cg' needs a symmetric positive definite matrix"):
        check_method(Automatic(arms=arms), facts("general"))
    with pytest.raises(StudyError, match="'mg' needs a problem on a structured grid"):
        check_method(Method("cg", "mg"), facts(grid=None))
