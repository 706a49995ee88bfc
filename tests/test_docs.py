"""What the documentation says still holds: links lead somewhere, studies are valid, the code of solids.md runs."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from forebay.pipeline.study import RomTable, study_from_dict
from forebay.solvers.compose import solid_method
from forebay.solvers.problems import PROBLEMS
from forebay.solvers.problems.solid import SolidProblem

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
EXECUTED = ("solids.md",)
"""Pages whose Python blocks run, one after another; the others' need files or objects of the reader's."""
LARGEST_PICTURE = 150_000


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.S | re.M)


def links(page: str) -> list[str]:
    """Targets that are files here, without their anchors."""
    found = re.findall(r"\]\(([^)#\s]+)", (DOCS / page).read_text())
    return [target for target in found if not target.startswith("http")]


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_of_a_page_exists(page):
    assert [target for target in links(page) if not (DOCS / target).is_file()] == []


def test_the_site_and_the_first_page_lead_to_every_page():
    listed = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == PAGES
    assert sorted([*links("index.md"), "index.md"]) == PAGES


def test_pictures_are_small_and_shown():
    pictures = sorted(DOCS.glob("pictures/*"))
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > LARGEST_PICTURE] == []
    shown = {target for page in PAGES for target in links(page)}
    assert [path.name for path in pictures if f"pictures/{path.name}" not in shown] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_is_valid_python(page):
    for number, code in enumerate(blocks(page, "python")):
        compile(code, f"{page}, block {number}", "exec")


def test_every_built_in_problem_has_its_row():
    rows = re.findall(r"^\| `(\w+)` \| -?[∂∇Δ]", (DOCS / "problems.md").read_text(), re.M)
    assert rows == list(PROBLEMS)


def test_every_file_that_solids_names_is_there():
    named = re.findall(r"`((?:solvers|cluster|examples|benchmarks)/[\w/]+\.\w+)`", (DOCS / "solids.md").read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


# -- studies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_study_in_a_page_is_valid(page):
    for text in blocks(page, "toml"):
        tree = {"name": "page", "problem": {"name": "darcy"}, **tomllib.loads(text)}
        study_from_dict(tree, source=page)


def test_the_study_of_a_solid_shows_every_key_of_its_reduced_model_with_its_default():
    (text,) = blocks("solids.md", "toml")
    tree = tomllib.loads(text)
    assert tree["solver"]["rom"] == RomTable().model_dump()
    assert solid_method(study_from_dict({"name": "page", **tree}).solver) == "rom"


def test_the_members_of_a_solid_of_ones_own_are_all_listed():
    table = (DOCS / "solids.md").read_text().split("### A solid of one's own")[1].split("##")[0]
    members = {name for name in vars(SolidProblem) if not name.startswith("_")}
    assert {name for name in members if f"`{name}" not in table} == set()


# -- code --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=EXECUTED)
def executed(request, tmp_path_factory):
    """Names after all blocks of a page, and what they printed."""
    names, printed = {"__name__": request.param}, io.StringIO()
    with contextlib.chdir(tmp_path_factory.mktemp("page")), contextlib.redirect_stdout(printed):
        for number, code in enumerate(blocks(request.param, "python")):
            if code.startswith("# not run: "):
                continue
            exec(compile(code, f"{request.param}, block {number}", "exec"), names)
    return names, printed.getvalue()


def test_the_batch_of_the_kernels_page_is_certified():
    (code,) = blocks("kernels.md", "python")
    names = {"__name__": "kernels.md"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "kernels.md", "exec"), names)
    assert printed.getvalue().startswith("CONVERGED ")
    assert all(record.residual <= 1e-8 for record in names["records"])


def test_blocks_that_are_not_run_say_why():
    skipped = [code for page in EXECUTED for code in blocks(page, "python") if code.startswith("#")]
    assert len(skipped) == 1
    assert all(re.match(r"# not run: .{20,}", code) for code in skipped)


def test_the_cube_has_the_stress_of_its_load_everywhere(executed):
    trajectory = executed[0]["trajectory"]
    np.testing.assert_allclose(trajectory.stress[-1], [[400, 0, 0, 0, 0, 0]] * executed[0]["model"].points, atol=1e-4)
    assert trajectory.displacement.shape == (21, executed[0]["model"].dofs)
    assert np.ptp(trajectory.p[-1]) < 1e-9
    assert 1e-3 < trajectory.p[-1].max() < 1e-2


def test_the_law_of_ones_own_is_solved_and_stiffens(executed):
    stiff = executed[0]["stiff"]
    strain = stiff.displacement[-1].max() / 10.0
    assert 200e3 * (1 + 5e4 * strain**2) * strain == pytest.approx(400, rel=1e-6)
    assert strain < 0.95 * 400 / 200e3
    assert max(record.iterations for record in stiff.records) <= 4  # more with a wrong tangent


def test_the_mesh_comes_back_from_its_file(executed):
    assert executed[0]["mesh"].names == executed[0]["model"].mesh.names
    assert executed[0]["mesh"].cells == 64


def test_the_reduced_bar_is_as_good_as_it_says(executed):
    names = executed[0]
    history = names["sample"](200, 580, 20, 1.0)
    run = names["full"].run(history)
    largest = names["p_max"](names["package"], names["found"])[-1]
    assert 0.8 < largest / run.p[-1].max() <= 1.02
    moved = names["monitored"](names["package"], names["found"])
    assert moved[-1, 0] == pytest.approx(np.abs(run.displacement[-1]).max(), rel=0.05)
    assert np.all(names["found"].errors[-1] < 0.05)
    assert names["package"].points < 0.2 * names["full"].points


def test_the_simulation_outside_is_adapted_and_right(executed):
    names = executed[0]
    outcome, history = names["outcome"], names["sample"](239, 760, 26, 1.0)
    assert 0 < outcome.full_steps < len(outcome.decisions)
    run = names["full"].run(history)
    assert np.linalg.norm(outcome.displacement[-1] - run.displacement[-1]) < 0.03 * np.linalg.norm(run.displacement[-1])
    plain = names["ReducedModel"](names["package"], names["bar"].law).run(history)
    assert plain.errors.max() > 0.03


def test_what_the_page_prints_is_complete(executed):
    lines = executed[1].splitlines()
    assert len(lines) == 8
    order = ("mm, p = ", "x_max", "modes", "largest p", "estimated errors", "steps in full", "allowed are", "kept")
    for line, words in zip(lines, order, strict=True):
        assert words in line
