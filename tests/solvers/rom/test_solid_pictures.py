"""The example that draws docs/solids.md: its projection and its choice of faces are right, and it runs."""

import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from forebay.solvers.fem.mesh_arrays import block

FILE = Path(__file__).parents[3] / "examples" / "solid_pictures.py"
COMMITTED = FILE.parents[1] / "docs" / "pictures"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("solid_pictures", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["solid_pictures"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["solid_pictures"]


@pytest.fixture(scope="module")
def bricks():
    return block((3, 2, 4), lambda points: points * [3, 2, 4])


def areas(nodes, faces):
    a, b, c, d = (nodes[faces[:, k]] for k in range(4))
    return 0.5 * np.cross(c - a, d - b)


def test_the_outside_of_a_block_is_its_six_sides_seen_from_outside(example, bricks):
    faces, cells = example.outside(bricks.cells)
    assert len(faces) == 2 * (3 * 2 + 2 * 4 + 3 * 4)
    outwards = areas(bricks.nodes, faces)
    np.testing.assert_allclose(outwards.sum(axis=0), 0, atol=1e-12)
    middle = bricks.nodes[faces].mean(axis=1)
    assert np.einsum("fi,fi->", outwards, middle) / 3 == pytest.approx(24)  # the volume, by the divergence theorem
    centres = bricks.nodes[bricks.cells[cells]].mean(axis=1)
    assert np.all(np.einsum("fi,fi->f", outwards, middle - centres) > 0)


@pytest.mark.parametrize("view", [(0, 0), (90, 0), (-65, 28), (200, -40)])
def test_a_view_is_a_rotation_with_z_upwards(example, view):
    axes = example.View(*view).project(np.eye(3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert axes[2, 0] == pytest.approx(0)
    assert axes[2, 1] > 0


def test_azimuth_zero_looks_along_the_x_axis(example):
    np.testing.assert_allclose(example.View(0, 0).project(np.eye(3)), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-15)


def test_three_sides_of_a_block_are_seen_the_farthest_first(example, bricks):
    projected = example.View(30, 20).project(bricks.nodes)
    faces, _ = example.outside(bricks.cells)
    paper = example.Paper.around(projected, 200, 5, 0)
    shown = example.visible(paper.place(projected), projected[:, 2], faces)
    normals = {tuple(np.sign(normal.round(9)).astype(int)) for normal in areas(bricks.nodes, faces[shown])}
    assert normals == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    assert np.all(np.diff(projected[faces[shown], 2].mean(axis=1)) >= 0)


def test_all_of_a_solid_is_on_the_paper(example, bricks):
    projected = example.View(-65, 28).project(bricks.nodes)
    paper = example.Paper.around(projected, 300, 10, 40)
    places = paper.place(projected)
    assert places.min() == pytest.approx(10)
    assert places[:, 0].max() == pytest.approx(290)
    assert places[:, 1].max() == pytest.approx(paper.height - 50)


def test_a_cut_solid_has_the_same_cells_further_apart(example, bricks):
    cut = example.opened(bricks, 2.0, np.array([1.0, 2.0, 5.0]))
    whole, parts = bricks.nodes[bricks.cells], cut.nodes[cut.cells]
    above = whole[:, :, 2].mean(axis=1) > 2.0
    np.testing.assert_allclose(parts - whole, above[:, None, None] * np.array([1.0, 2.0, 5.0]) * np.ones((8, 1)))
    assert len(example.outside(cut.cells)[0]) == len(example.outside(bricks.cells)[0]) + 2 * 3 * 2


def test_estimates_are_counted_where_there_is_an_error(example):
    steps = np.array([[0.01, 0.5, 0.005, 0.1], [0.01, 0.1, 0.02, 0.0], [0.02, 0.1, 0.01, 0.2], [0.1, 0.2, 0.01, 1e-7]])
    text = example.estimate_picture(steps)
    assert "displacement: 75 % above" in text
    assert "plastic strain: 67 % above" in text
    assert text.count("<circle") == 4 + 3


def test_the_example_draws_every_picture_of_the_page(example, tmp_path, capsys):
    example.main(["--coarse", "--output", str(tmp_path)])
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in COMMITTED.iterdir())
    for name in drawn:
        root = ElementTree.fromstring((tmp_path / name).read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "nan" not in (tmp_path / name).read_text(encoding="utf-8")
    assert len(capsys.readouterr().out.splitlines()) == len(drawn)


@pytest.mark.parametrize("path", sorted(COMMITTED.iterdir()), ids=lambda path: path.stem)
def test_committed_pictures_are_whole(path):
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    width, height = (float(value) for value in root.get("viewBox").split()[2:])
    assert 300 < width < 800
    assert 200 < height < 900
