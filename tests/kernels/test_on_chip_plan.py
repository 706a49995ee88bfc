"""Bytes of the on-chip solver against those of real devices."""

import math

import numpy as np
import pytest

from forebay.kernels.on_chip_plan import LEVEL_INTS, STATIC_BYTES, Limits, plan_of

H200 = Limits(232_448, 132, True)
A100 = Limits(166_912, 108, False)
SHAPES = [
    (32, 32),
    (64, 64),
    (128, 128),
    (16, 16, 16),
    (32, 32, 32),
    (33, 70),
    (7, 100),
    (5, 6, 7),
    (190, 190),
    (9, 9, 9),
]


@pytest.mark.parametrize(
    ("shape", "cluster", "kibibytes", "resident"),
    [
        ((32, 32), 1, 13, 8),
        ((64, 64), 1, 52, 4),
        ((128, 128), 1, 208, 1),
        ((16,) * 3, 1, 50, 2),
        ((32,) * 3, 2, 208, 1),
    ],
)
def test_the_shapes_of_the_benchmark_stay_on_a_hopper_chip(shape, cluster, kibibytes, resident):
    plan = plan_of(shape, H200, multigrid=True)
    assert (plan.cluster, plan.direction_on_chip, plan.resident) == (cluster, True, resident)
    assert plan.shared_bytes == kibibytes * 1024


@pytest.mark.parametrize("limits", [H200, A100], ids=["H200", "A100"])
def test_the_blocks_of_a_multiprocessor_fit_what_is_carved_out_and_no_percent_is_too_much(limits):
    plans = [plan for shape in SHAPES if (plan := plan_of(shape, limits, multigrid=True))]
    assert {plan.resident for plan in plans} >= {1, 2, 4, 8}
    for plan in plans:
        # The driver's own kibibyte a block counts on both sides.
        needed, whole = plan.resident * (plan.shared_bytes + STATIC_BYTES + 1024), limits.shared_bytes + 1024
        assert whole * (plan.carveout - 1) < 100 * needed <= whole * plan.carveout <= 100 * whole


def test_an_ampere_chip_keeps_128_squared_with_the_direction_outside_and_leaves_32_cubed_to_other_kernels():
    plan = plan_of((128, 128), A100, multigrid=True)
    assert (plan.cluster, plan.direction_on_chip, plan.shared_bytes) == (1, False, 144 * 1024)
    assert plan_of((32, 32, 32), A100, multigrid=True) is None


@pytest.mark.parametrize("shape", [(256, 512), (64, 64, 64), (2, 200_000)])
def test_systems_that_do_not_fit_have_no_plan(shape):
    assert plan_of(shape, H200, multigrid=True) is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("multigrid", [True, False])
def test_vectors_that_live_at_the_same_time_do_not_overlap(shape, multigrid):
    plans = [plan_of(shape, Limits(kib * 1024, 4, True), multigrid=multigrid) for kib in (4, 9, 24, 50, 90, 150, 227)]
    assert any(plans)
    for plan in filter(None, plans):
        taken = np.zeros(plan.floats, dtype=int)
        taken[: plan.slab * (1 + plan.direction_on_chip)] += 1
        arena = plan.table[0][7]
        assert arena + plan.slab <= plan.floats
        for depth, row in enumerate(plan.table[1:], 1):
            cells, vectors = row[3], 2 if depth + 1 == len(plan.table) else 3
            for start in row[6 : 6 + vectors]:
                assert start + cells <= plan.floats
                taken[start : start + cells] += 1
        assert taken.max() == 1
        if len(plan.table) > 1:
            # z_1 is read while t is written.
            z1 = plan.table[1][7 if len(plan.table) == 2 else 6]
            assert z1 + plan.table[1][3] <= arena


@pytest.mark.parametrize("kibibytes", [8, 24, 90, 227])
def test_a_plan_keeps_to_the_memory_of_the_device(kibibytes):
    plans = [plan_of(shape, Limits(kibibytes * 1024, 4, True), multigrid=True) for shape in SHAPES]
    sizes = [plan.shared_bytes + STATIC_BYTES for plan in plans if plan is not None]
    assert sizes
    assert max(sizes) <= kibibytes * 1024


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_slabs_begin_at_even_rows_and_cover_the_grid(shape):
    plan = plan_of(shape, Limits(40 * 1024, 4, True), multigrid=True) or plan_of(shape, H200, multigrid=True)
    row = math.prod(shape[1:])
    assert plan.slab % row == 0
    assert plan.cluster == 1 or plan.slab // row % 2 == 0
    assert plan.slab * plan.cluster >= math.prod(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_can_divide_by_multiplication(shape):
    rows = plan_of(shape, H200, multigrid=True).rows()
    assert rows.shape[1] == LEVEL_INTS
    for row in rows:
        index = np.arange(row[3], dtype=np.uint64)
        for count, inverse in ((row[2], row[4]), (row[1], row[5])):
            if count > 1:
                found = (index * np.uint64(np.uint32(np.int64(inverse) % 2**32))) >> np.uint64(32)
                assert np.array_equal(found, index // np.uint64(count))
