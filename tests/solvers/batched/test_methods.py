"""What a study may say of the kernels' methods, and what is refused because it would be passed over."""

import pytest

from forebay.pipeline.errors import StudyError
from forebay.pipeline.study import SolverTable
from forebay.solvers.arms import Automatic, MatrixFacts, check_method, check_order, default_arms, facts_of, parse_method
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.helmholtz import Helmholtz

WIDE = "needs the 5-point stencil, which the pattern is not"


def facts(symmetry="spd", grid=(64, 64), fault=""):
    return MatrixFacts(symmetry, 4096, grid, 5.0, False, fault)


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"method": "batched"}, "batched:multigrid"),
        ({"method": "batched", "backend": "torch"}, "batched:multigrid"),
        ({"method": "batched", "learned": "shipped"}, "batched:learned"),
        ({"method": "cg", "preconditioner": "boxmg"}, "cg+boxmg"),
        ({"method": "cg", "preconditioner": "boxmg", "learned": "shipped"}, "cg+boxmg(learned)"),
        ({"method": "minres", "preconditioner": "amg"}, "minres+amg"),
        ({"method": "cg", "preconditioner": "amg", "learned": "w.safetensors"}, "cg+amg(learned)"),
    ],
)
def test_a_method_of_the_kernels_is_named(options, label):
    choice = Method(**options).resolve("spd", 4096, structured=True)
    assert choice.label == label
    assert choice.label.split() == [choice.label], "a blank separates flag meanings in a data set"
    assert not choice.remembers
    assert not choice.direct


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preconditioner": "mg"}, r"solver.preconditioner = 'mg' has no use with solver.method = 'batched'; leave it"),
        ({"factor": "mumps"}, r"solver.factor = 'mumps' has no use with solver.method = 'batched'"),
        ({"restart": 30}, r"solver.restart = 30 has no use with solver.method = 'batched'"),
        ({"recycle": 4}, r"solver.recycle = 4 has no use with solver.method = 'batched'"),
        ({"variant": "exact"}, r"solver.variant = 'exact' has no use with solver.method = 'batched'"),
        ({"omega": 1.5}, r"solver.omega = 1.5 has no use with preconditioner = None"),
        ({"fill": 1}, r"solver.fill = 1 has no use with preconditioner = None"),
        ({"reuse": "preconditioner"}, r"solver.reuse = 'preconditioner' has no use with solver.method = 'batched'"),
        ({"options": {"pc_x": 1}}, r"solver.options.pc_x = 1 has no use with solver.method = 'batched', which is none"),
        ({"backend": "gpu"}, r"solver.backend = 'gpu' does not exist; did you mean 'cpu'?"),
        ({"method": "cg", "backend": "cpu"}, r"solver.backend = 'cpu' has no use with solver.method = 'cg'; leave it"),
        (
            {"method": "cg", "learned": "shipped"},
            r"solver.learned = 'shipped' has no use with solver.method = 'cg' and preconditioner = 'gamg'",
        ),
        ({"method": "direct", "learned": "shipped"}, r"solver.learned = 'shipped' has no use with .* 'direct'"),
        (
            {"method": "cg", "preconditioner": "boxmg", "learned": "online"},
            r"solver.learned = 'online' works with solver.method = 'batched', or 'cg' with preconditioner = 'amg', "
            r"which look for new weights before each block, not with 'cg' and 'boxmg'; use 'shipped', or a file",
        ),
        (
            {"method": "gmres", "preconditioner": "amg", "learned": "online"},
            r"solver.learned = 'online' works with .*, not with 'gmres' and 'amg'; use 'shipped'",
        ),
    ],
)
def test_what_would_be_passed_over_is_refused(options, message):
    with pytest.raises(StudyError, match=message):
        Method(**{"method": "batched", **options})


def test_a_matrix_without_a_stencil_is_refused_by_both():
    for method, key in ((Method("batched"), "method"), (Method("cg", "boxmg"), "preconditioner")):
        check_method(method, facts())
        with pytest.raises(StudyError, match=rf"solver.{key} = '(batched|boxmg)' {WIDE}"):
            check_method(method, facts(fault=WIDE))
    check_method(Method("cg", "mg"), facts(fault=WIDE))
    check_method(Method("cg", "amg"), facts(grid=None))
    with pytest.raises(StudyError, match="'amg' needs a symmetric positive definite matrix"):
        check_method(Method("gmres", "amg"), facts("symmetric"))


def test_the_stencil_is_read_off_the_problem():
    assert facts_of(Darcy(size=8)).stencil_fault == ""

    class Coupled(Helmholtz):
        grid_shape = (8 * 8, 16)

    assert "share no face" in facts_of(Coupled(size=32)).stencil_fault


@pytest.mark.parametrize(("kind", "there"), [(facts(), True), (facts(grid=None), False), (facts(fault=WIDE), False)])
def test_auto_tries_it_where_there_is_a_stencil(kind, there):
    arms = default_arms(kind, rtol=1e-7, max_iterations=99)
    assert (Method("batched", rtol=1e-7, max_iterations=99) in arms) is there
    assert arms[0].method == "direct", "the first arm is the safe one"
    assert not any(arm.method == "batched" for arm in default_arms(facts("symmetric"), rtol=1e-7, max_iterations=9))


def test_an_arm_is_of_this_process_s_processor():
    table = {"method": "auto", "arms": [{"method": "batched", "learned": "shipped"}, {"method": "direct"}]}
    assert parse_method(SolverTable(**table).model_dump()) == Automatic(
        arms=(Method("batched", learned="shipped"), Method())
    )
    with pytest.raises(StudyError, match=r"solver.arms\[0\].backend does not exist"):
        parse_method({"method": "auto", "arms": [{"method": "batched", "backend": "cuda"}]})
    with pytest.raises(StudyError, match=r"solver.arms\[0\].learned = 'online' needs .* 'batched' or 'cg'"):
        parse_method({"method": "auto", "arms": [{"method": "batched", "learned": "online"}]})


@pytest.mark.parametrize("wanted", [{"sort": True}, {"guesses": 3}])
def test_the_order_of_samples_that_are_solved_together_is_nobody_s_choice(wanted):
    key, value = next(iter(wanted.items()))
    with pytest.raises(StudyError, match=rf"solver.{key} = {str(value).lower()} has no use with .* 'batched', which"):
        check_order(Method("batched"), facts(), **{"sort": False, "guesses": 0, **wanted})
