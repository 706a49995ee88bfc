import math
import subprocess
import sys

import pytest
import torch
from grid_levels import rough_stencil

from forebay.kernels.hierarchy import COARSEST, box_offsets, half_offsets, levels_of
from forebay.kernels.multigrid import build_hierarchy


def test_the_halves_of_a_box_and_a_star_are_the_documented_offsets():
    assert half_offsets(2, finest=True) == ((0, 1), (1, 0))
    assert half_offsets(3, finest=True) == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert half_offsets(2, finest=False) == ((0, 1), (1, -1), (1, 0), (1, 1))
    assert half_offsets(3, finest=False)[:5] == ((0, 0, 1), (0, 1, -1), (0, 1, 0), (0, 1, 1), (1, -1, -1))
    assert len(half_offsets(3, finest=False)) == 13
    assert box_offsets(2)[4] == (0, 0)


@pytest.mark.parametrize(
    ("shape", "last", "count"),
    [
        ((64, 64), (8, 8), 4),
        ((65, 9), (17, 3), 3),
        ((1, 1000), (1, 63), 5),
        ((8, 8), (8, 8), 1),
        ((32, 32, 32), (4, 4, 4), 4),
    ],
)
def test_levels_halve_down_to_a_dense_one(shape, last, count):
    shapes = levels_of(shape)
    assert shapes[0] == shape
    assert shapes[-1] == last
    assert len(shapes) == count
    assert math.prod(shapes[-1]) <= COARSEST
    assert all(math.prod(level) > COARSEST for level in shapes[:-1])


def test_shapes_of_all_arrays_are_those_of_the_layout():
    hierarchy = build_hierarchy(rough_stencil((11, 6, 9), batch=3))
    finest, *_, last = hierarchy.levels
    assert finest.off.shape == (3, 3, 11, 6, 9)
    assert finest.prolong.shape == (3, 27, 6, 3, 5)
    assert finest.smoother.shape == (3, 11, 6, 9)
    assert hierarchy.levels[1].off.shape == (3, 13, 6, 3, 5)
    assert last.inverse.shape == (3, 18, 18)
    assert last.smoother is None
    assert last.prolong is None
    assert finest.diagonal.dtype == torch.float32
    assert hierarchy.scale.dtype == torch.float64


def test_selected_systems_are_those_of_the_batch():
    hierarchy = build_hierarchy(rough_stencil((12, 10), batch=4))
    part = hierarchy.select(torch.tensor([3, 1]))
    assert part.batch == 2
    for whole, level in zip(hierarchy.levels, part.levels, strict=True):
        assert torch.equal(level.diagonal, whole.diagonal[[3, 1]])
    assert torch.equal(part.levels[-1].inverse, hierarchy.levels[-1].inverse[[3, 1]])
    assert torch.equal(hierarchy.select(slice(1, 2)).levels[0].off, hierarchy.levels[0].off[1:2])


def test_conversion_changes_the_levels_and_keeps_the_scale():
    hierarchy = build_hierarchy(rough_stencil((12, 10))).to(dtype=torch.float64)
    assert hierarchy.levels[0].off.dtype == torch.float64
    assert hierarchy.scale.dtype == torch.float64


@pytest.mark.parametrize("name", ["hierarchy", "grid_weights", "guard", "weight_file"])
def test_what_a_petsc_process_imports_loads_no_torch(name):
    code = f"import sys, forebay.kernels.{name}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
