from __future__ import annotations

import json
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from grid_systems import drawn, matrix_of

from forebay.pipeline import user_file
from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.stages import Problem, StructuredProblem, TransientProblem
from forebay.solvers.problems import PROBLEMS, check_contract, describe_problems, load_problem

GRID_PROBLEMS = [name for name in PROBLEMS if name not in ("darcy_fem", "elasticity", "necked_bar", "blade")]

ROD = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema


@dataclass(frozen=True, kw_only=True)
class Rod:
    """-(k u')' = 1 on (0, 1), u(0) = u(1) = 0."""

    cells: int = 8
    kind: Literal["warm", "cold"] = "warm"
    weights: tuple[float, float] = (1.0, 2.0)

    @property
    def schema(self):
        x = (np.arange(self.cells) + 0.5) / self.cells
        return Schema(
            parameters=(Parameter("k", 1.0, 2.0),),
            inputs=(),
            outputs=(Field("u", ("x",), (self.cells,)),),
            coordinates=(Coordinate("x", ("x",), x),),
        )

    symmetry = "spd"

    def draw(self, parameters, rng):
        return {}

    def pattern(self):
        rows = [[j for j in (i - 1, i, i + 1) if 0 <= j < self.cells] for i in range(self.cells)]
        return np.cumsum([0, *map(len, rows)], dtype=np.int32), np.concatenate(rows).astype(np.int32)

    def assemble(self, draw, values, rhs):
        indptr, indices = self.pattern()
        rows = np.repeat(np.arange(self.cells), np.diff(indptr))
        values[:] = np.where(rows == indices, 2.0, -1.0) * draw["parameters"][0]
        rhs[:] = self.cells**-2

    def fields(self, draw, solution):
        return {"u": solution}
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rod.py").write_text(ROD)
    return tmp_path


@pytest.mark.parametrize("name", GRID_PROBLEMS)
def test_built_in_problems_keep_the_contract(name, tmp_path):
    problem = load_problem(name, {"size": 32}, folder=tmp_path)
    assert isinstance(problem, TransientProblem if problem.schema.times else Problem)
    check_contract(problem)


@pytest.mark.parametrize("name", GRID_PROBLEMS)
def test_grid_problems_number_their_cells_row_by_row(name, tmp_path):
    problem = load_problem(name, {"size": 32}, folder=tmp_path)
    assert isinstance(problem, StructuredProblem)
    shape = problem.grid_shape
    assert shape == problem.schema.outputs[0].shape
    indptr, indices = problem.pattern()
    assert len(indptr) - 1 == math.prod(shape)
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    apart = np.abs(np.array(np.unravel_index(rows, shape)) - np.unravel_index(indices, shape)).sum(axis=0)
    assert apart.max() == 1, "only cells with a common face are coupled"


def test_a_mesh_is_not_structured(tmp_path):
    assert not isinstance(load_problem("darcy_fem", {}, folder=tmp_path), StructuredProblem)


@pytest.mark.parametrize("name", GRID_PROBLEMS)
def test_a_pickled_problem_makes_the_same_samples(name, tmp_path):
    problem = load_problem(name, {"size": 32}, folder=tmp_path)
    draw = drawn(problem)
    matrix, rhs = matrix_of(problem, draw)
    copy = pickle.loads(pickle.dumps(problem))
    again, rhs_again = matrix_of(copy, drawn(copy))
    np.testing.assert_array_equal(matrix.data, again.data)
    np.testing.assert_array_equal(rhs, rhs_again)


@pytest.mark.parametrize("name", GRID_PROBLEMS)
def test_a_sample_does_not_depend_on_the_samples_before_it(name, tmp_path):
    fresh, used = (load_problem(name, {"size": 32}, folder=tmp_path) for _ in range(2))
    matrix_of(used, drawn(used, 1))
    for one, other in zip(matrix_of(fresh, drawn(fresh, 2)), matrix_of(used, drawn(used, 2)), strict=True):
        np.testing.assert_array_equal(getattr(one, "data", one), getattr(other, "data", other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": 16},
            r"problem.size = 16 is not allowed: it should be greater than or equal to 32; the default is 64",
        ),
        ({"size": 1024}, r"problem.size = 1024 is not allowed: it should be less than or equal to 512"),
        ({"size": "64"}, r"problem.size = '64' is not allowed: it should be a valid integer; the default is 64"),
        ({"size": True}, r"problem.size = True is not allowed: it should be a valid integer"),
        ({"size": 64.5}, r"problem.size = 64.5 is not allowed: it should be a valid integer"),
        ({"forcing": float("inf")}, r"problem.forcing = inf is not allowed: it should be a finite number"),
        ({"alpha": float("nan")}, r"problem.alpha = nan is not allowed: it should be a finite number"),
        (
            {"coefficient": "two-valued"},
            r"problem.coefficient = 'two-valued' is not .* be 'two_valued' or 'log_normal'",
        ),
        ({"sise": 64}, r"problem.sise = 64 is not an option of Darcy; did you mean 'size'\?"),
        ({"wombat": 64}, r"problem.wombat = 64 is not an option of Darcy; known keys: size, coefficient, alpha"),
        ({"size": 16, "wombat": 1}, r"(?s)problem.size = 16 .*\nproblem.wombat = 1"),
    ],
)
def test_a_faulty_option_is_named_with_value_constraint_and_remedy(options, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        load_problem("darcy", options, folder=tmp_path)


def test_integers_are_taken_where_numbers_are_asked_for(tmp_path):
    assert load_problem("darcy", {"tau": 5}, folder=tmp_path).tau == 5.0


def test_options_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(StudyError, match=r"problem.wavenumber_low = 16.0 must be below problem.wavenumber_high = 15.2"):
        load_problem("helmholtz", {"wavenumber_low": 16.0}, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("darci", r"problem.name = 'darci' is not a known problem; did you mean 'darcy'\?, or name your own as"),
        ("wombat", r"'wombat' is not a known problem; choose one of darcy, poisson, helmholtz"),
        ("rod:Rod", r"'rod:Rod' is not a known problem; .* name your own as \"file.py:Class\""),
    ],
)
def test_an_unknown_name_lists_what_there_is(name, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        load_problem(name, {}, folder=tmp_path)


def test_a_problem_of_ones_own_is_loaded_from_its_file(folder):
    problem = load_problem("rod.py:Rod", {"cells": 12, "weights": [3, 4.5]}, folder=folder)
    assert (problem.cells, problem.weights) == (12, (3.0, 4.5))
    with pytest.raises(StudyError, match=r"problem.kind = 'hot' is not allowed: it should be 'warm' or 'cold'"):
        load_problem("rod.py:Rod", {"kind": "hot"}, folder=folder)


def test_a_pickle_of_it_loads_wherever_the_file_was_loaded(folder):
    problem = load_problem("rod.py:Rod", {"cells": 12}, folder=folder)
    pickled = pickle.dumps(problem)
    del sys.modules[type(problem).__module__]  # as in another process
    load_problem("rod.py:Rod", {}, folder=folder)
    assert pickle.loads(pickled).cells == 12


def test_loading_twice_gives_one_class_and_an_edited_file_another(folder):
    first, again = (load_problem("rod.py:Rod", {}, folder=folder) for _ in range(2))
    assert type(first) is type(again)
    (folder / "rod.py").write_text(ROD.replace("cells: int = 8", "cells: int = 9"))
    assert load_problem("rod.py:Rod", {}, folder=folder).cells == 9
    assert pickle.loads(pickle.dumps(first)).cells == 8


def test_files_of_the_same_name_in_two_folders_do_not_meet(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "rod.py").write_text(ROD)
    one, two = (load_problem("rod.py:Rod", {}, folder=at) for at in (folder, other))
    assert type(one) is not type(two)


@pytest.fixture
def own_imports(monkeypatch):
    """What a user's file imports is forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.setattr(user_file, "_FOLDERS", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_problem_may_import_the_modules_beside_it(tmp_path, own_imports):
    (tmp_path / "rod_facts.py").write_text("CELLS = 11\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('hides the standard library')\n")
    (tmp_path / "rod.py").write_text(
        ROD.replace("import numpy as np", "import json\nimport numpy as np\nfrom rod_facts import CELLS", 1).replace(
            "cells: int = 8", "cells: int = CELLS"
        )
    )
    assert load_problem("rod.py:Rod", {}, folder=tmp_path).cells == 11
    assert sys.path.count(str(tmp_path)) == 1


def test_modules_of_the_same_name_beside_two_problems_are_refused_and_not_mixed_up(tmp_path, own_imports):
    for number, name in enumerate(("one", "two", "three")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rod.py").write_text(ROD.replace("import numpy as np", "import rod_size, numpy as np", 1))
        (tmp_path / name / "rod_size.py").write_text(f"CELLS = {number}\n")
    (tmp_path / "three" / "rod.py").write_text(ROD)
    (tmp_path / "three" / "rod_size.py").unlink()
    load_problem("rod.py:Rod", {}, folder=tmp_path / "one")
    with pytest.raises(
        ProblemError, match=r"two/rod_size.py and .*one/rod_size.py would be the same module 'rod_size'"
    ):
        load_problem("rod.py:Rod", {}, folder=tmp_path / "two")
    load_problem("rod.py:Rod", {}, folder=tmp_path / "three")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "absent.py:Rod",
            "",
            r"problem file .*absent.py does not exist; problem.name is relative to the study's folder",
        ),
        ("rod.py:Rodd", ROD, r"rod.py has no class 'Rodd'; did you mean 'Rod'\?"),
        ("rod.py:Zebra", "x = 1", r"rod.py has no class 'Zebra'; its classes: none"),
        (
            "rod.py:Rod",
            "import nonexistent_module",
            r"rod.py raised ModuleNotFoundError: .*; `python rod.py` shows where",
        ),
        ("rod.py:Rod", "raise SystemExit(3)", r"rod.py raised SystemExit: 3; `python rod.py` shows where"),
        ("rod.py:Rod", "class Rod: pass", r"Rod is not a dataclass; decorate it with @dataclass\(frozen=True"),
        ("rod.py:Rod", ROD.replace("def draw", "def drew"), "Rod has no draw; a problem needs schema, symmetry, draw"),
        (
            "rod.py:Rod",
            ROD.replace("cells: int = 8", "cells: np.ndarray = 8"),
            "'cells' of Rod has the type .* cannot hold",
        ),
        (
            "rod.py:Rod",
            ROD.replace("cells: int = 8", "cells: Wombat = 8"),
            "annotation that cannot be resolved: .*Wombat",
        ),
        (
            "rod.py:Rod",
            ROD.replace('k", 1.0, 2.0', 'k", 2.0, 1.0'),
            r"Rod.schema raised ValueError: parameter 'k' has range",
        ),
    ],
)
def test_a_faulty_file_is_refused_with_its_fault(name, content, message, tmp_path):
    if not name.startswith("absent"):
        (tmp_path / "rod.py").write_text(content)
    with pytest.raises(ProblemError, match=message):
        load_problem(name, {"cells": 8} if "cells: np" in content else {}, folder=tmp_path)


def test_an_option_without_default_must_be_given(tmp_path):
    (tmp_path / "rod.py").write_text(ROD.replace("cells: int = 8", "cells: int"))
    with pytest.raises(StudyError, match=r"problem.cells is missing; Rod has no default for it"):
        load_problem("rod.py:Rod", {}, folder=tmp_path)


def test_what_a_class_refuses_itself_is_a_fault_of_the_study(tmp_path):
    check = "\n    def __post_init__(self):\n        if self.cells == 13:\n            raise ValueError('unlucky')\n"
    (tmp_path / "rod.py").write_text(ROD + check)
    with pytest.raises(StudyError, match=r"problem options {'cells': 13} were refused by Rod: unlucky"):
        load_problem("rod.py:Rod", {"cells": 13}, folder=tmp_path)


def test_the_catalogue_has_equations_ranges_and_defaults_as_toml_writes_them():
    cards = {card.name: card for card in describe_problems()}
    assert list(cards) == list(PROBLEMS)
    assert cards["heat"].summary.startswith("∂u/∂t = κ Δu on the unit square")
    options = {option.name: option for option in cards["darcy"].options}
    assert (options["size"].type, options["size"].default) == ("integer >= 32 <= 512", "64")
    assert options["coefficient"].type == '"two_valued" | "log_normal"'
    assert options["coefficient"].default == '"two_valued"'
    for name in GRID_PROBLEMS:
        defaults = {option.name: json.loads(option.default) for option in cards[name].options}
        assert load_problem(name, defaults, folder=Path()) == load_problem(name, {}, folder=Path())
