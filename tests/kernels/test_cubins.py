"""Every CUDA source compiles for every architecture, within its registers and without spills; no GPU takes part."""

import itertools

import pytest

from forebay.kernels import compile as compiler
from forebay.kernels.on_chip_plan import Limits, plan_of
from forebay.kernels.sources import FOLDER, kernel_names, source

if not compiler.is_available():
    pytest.skip("cuda-core is not installed", allow_module_level=True)

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
GRID = {"apply_dot": 64, "update_dot": 32, "direction": 24, "scale_dot": 32, "coarsest": 48, "true_residual": 48}
"""Registers a thread; 64 and fewer leave room for 1024 threads on a multiprocessor, 128 for 512."""
LEGS = {"down_star": 112, "down_box": 128, "up_star": 96, "up_box": 112}
ONE = {"spmm_dot": 40, "update_dot": 40, "residual": 40, "restriction": 40, "prolong": 40, "post_dot": 40}
ONE |= {"coarsest_dot": 40, "direction": 24}
EIGHT = dict.fromkeys(ONE, 56)


def sell(bits, columns):
    return {"REAL": "double", "CYCLE": "double" if bits == 64 else "float", "VALUE": str(bits), "NRHS": str(columns)}


def on_chip(shape, limits):
    return plan_of(shape, limits, multigrid=True).macros


H200, A100 = Limits(232448, 132, True), Limits(166912, 108, False)
CHIP_2D, CHIP_3D = ({"pcg_on_chip": registers, "correct_and_measure": 48} for registers in (64, 128))
CASES = [
    *[("on_chip", on_chip((n, n), H200), CHIP_2D) for n in (32, 64, 128)],
    ("on_chip", on_chip((128, 128), A100), CHIP_2D),
    *[("on_chip", on_chip((n, n, n), H200), CHIP_3D) for n in (16, 32)],
    *[("large_grid", {"DIM": d, "REAL": r}, GRID | LEGS) for d, r in itertools.product("23", ("float", "double"))],
    *[("sell", sell(bits, 1), ONE) for bits in (16, 32, 64)],
    ("sell", sell(16, 8), EIGHT),
    ("sell_small", sell(32, 1), {"solve_small": 64}),
    ("sell_small", sell(16, 4), {"solve_small": 80}),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "macros", "limits"), CASES, ids=["-".join((name, *macros.values())) for name, macros, _ in CASES]
)
def test_source_compiles_within_its_registers_and_does_not_spill(name, macros, limits, arch, kernel_cache, monkeypatch):
    monkeypatch.setenv("FOREBAY_CACHE", str(kernel_cache))
    made = compiler.compile_source(name, macros, arch=arch)
    found = compiler.resources(made.log)
    assert made.code[:4] == b"\x7fELF"
    assert set(found) == set(limits)
    assert {kernel: one.spill_bytes for kernel, one in found.items() if one.spill_bytes} == {}
    assert {kernel: one.registers for kernel, one in found.items() if one.registers > limits[kernel]} == {}
    assert max(one.shared_bytes for one in found.values()) <= 48 * 1024


def test_no_source_is_left_out():
    assert {name for name, _, _ in CASES} == {path.stem for path in FOLDER.glob("*.cu")}


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_every_kernel_is_found_by_name(name):
    limits = next(limits for case, _, limits in CASES if case == name)
    assert set(kernel_names(source(name))) == set(limits)
