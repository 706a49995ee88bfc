"""The benchmarks still run, with sizes at which their figures mean nothing."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import ray
from scipy.sparse import csr_array

from forebay.solvers.problems import load_problem

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
CLAIMS = (
    "academic_cube",
    "auto",
    "batched_cpu",
    "batched_gpu",
    "chaos",
    "cubature_scaling",
    "dataset_io",
    "dcdm",
    "fno_step",
    "indicator",
    "learned",
    "local_bases",
    "online_aggregation",
    "online_vs_offline",
    "overlap",
    "recycling",
    "ring",
    "rom_accuracy",
    "rom_adaptive",
    "scaling",
    "skr",
    "solves_per_second",
)


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a file of benchmarks/ by its name, as its neighbours see it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        module = importlib.import_module(name)
        assert module.__file__ is not None
        assert Path(module.__file__).parent == BENCHMARKS
        return module

    return load


@pytest.fixture
def report(benchmark):
    return benchmark("common").Report("trial", argparse.Namespace(quick=True, write=False))


def rows(report) -> dict[str, list[str]]:
    """Cells of every table row that was printed, by the first cell."""
    lines = [line for text in report.lines for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


# -- what they share ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_every_benchmark_says_its_claim_in_the_first_line(benchmark, name):
    module = benchmark(name)
    assert callable(module.main)
    assert module.__doc__.startswith("Claim: ")


def test_make_bench_runs_existing_benchmarks_only():
    named = re.findall(r"for name in ([\w ]+);", (ROOT / "Makefile").read_text().replace("\\\n\t", ""))
    assert named
    assert {name for names in named for name in names.split()} <= set(CLAIMS)


def test_the_readme_names_every_benchmark():
    text = (BENCHMARKS / "README.md").read_text()
    assert [name for name in CLAIMS if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,230"), (0.012345, "0.0123"), (3.14159, "3.14"), (2.5e8, "2.5e+08"), (-42.123, "-42.1")],
)
def test_numbers_have_three_digits(benchmark, value, text):
    assert benchmark("common").number(value) == text


def test_contenders_take_turns_and_every_second_round_runs_backwards(benchmark):
    order = []
    contenders = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    measured = benchmark("common").alternate(contenders, 3)
    assert "".join(order) == "abccbaabc"
    assert measured["a"].values == (1, 6, 7)
    assert (measured["a"].median, measured["a"].spread) == (6, 1.0)


@pytest.mark.parametrize(("ok", "status", "word"), [(True, 0, "ok"), (False, 1, "short")])
def test_the_last_line_and_the_exit_status_say_the_same(report, ok, status, word):
    assert report.finish("1.07", "<= 1.10", ok=ok) == status
    assert report.lines[-1] == f"\ntrial: 1.07 (target <= 1.10) {word}"


# -- overlap -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processor_time_counts_a_process_and_its_children(benchmark):
    processes = benchmark("processes")
    spin = "import time\nwhile time.process_time() < {}: pass\n"
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin.format(0.3)!r}])\n{spin.format(0.2)}"
    with subprocess.Popen([sys.executable, "-c", script]) as child:
        begin = time.time()
        with processes.ProcessorTime(child.pid) as watch:
            seen: dict[int, tuple[str, float]] = {}
            while child.poll() is None:
                seen |= processes.processes_under(child.pid)
    assert {role for role, _ in seen.values()} == {"driver", "Ray"}, "a child that is no actor counts as Ray's"
    assert seen[child.pid][1] >= 0.1
    # The last look is at most a quarter of a second before the end of what spins for 0.3 s.
    assert watch.between(begin, time.time())["Ray"] >= 0.04


def test_the_second_cores_ideal_lies_between_half_the_work_and_one_core_each(benchmark):
    overlap = benchmark("overlap")
    bench = overlap.Bench(overlap.FULL.cases[-1], Path(), "ray", 100)
    result = overlap.Result(
        bench, solver=[{"seconds": 10.0}], learner=[{"seconds": 30.0}], learner_on_two=[], together=[], online=[]
    )
    assert result.ideal == 30.0
    assert replace(result, learner_on_two=[{"seconds": 18.0}]).ideal == pytest.approx(10.0 + 2 / 3 * 18.0)
    assert replace(result, learner_on_two=[{"seconds": 15.0}]).ideal == pytest.approx(result.half)


@pytest.mark.slow
def test_overlap_measures_every_contender(benchmark, report, monkeypatch):
    overlap = benchmark("overlap")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    network = overlap.Network(width=4, modes=2, layers=1, projection=4)
    case = overlap.Case(name="second core", samples=128, size=32, network=network, seconds=0.3, threads_after=2)
    plan = overlap.Plan(cases=(case,), repeats=1, trial_batches=12, executor="local")
    ratio = overlap.run_benchmark(plan, report)
    found = rows(report)
    assert ratio > 0
    cells = found[case.name]
    assert len(cells) == len(overlap.CASE_COLUMNS) - 1
    assert "" not in cells
    assert float(cells[-2]) == pytest.approx(ratio, abs=0.006)
    assert float(found["learner, training steps"][2]) > 0
    assert float(found["Ray and the actors"][0]) >= 0
    assert sum("What is missing, second core" in text for text in report.lines) == 1


@pytest.mark.slow
def test_a_stage_that_cannot_start_says_so(benchmark, tmp_path, capfd):
    alone = benchmark("alone")
    with (
        pytest.raises(RuntimeError, match="the stage answered '' instead of 'ready'"),
        alone.Stage.start("solver", tmp_path / "missing.spec", tmp_path, {}),
    ):
        pass
    assert "missing.spec" in capfd.readouterr().err


# -- online against offline --------------------------------------------------------------------------------------------


def tiny(module: ModuleType, case):
    """Some frames, some batches; a part of the network."""
    heat = case.problem == "heat"
    model = {"name": "mlp", "hidden": [8]} if heat else {"name": "fno", "width": 4, "modes": 2, "layers": 1}
    return replace(
        case,
        options={"size": 16, "steps": 10} if heat else {"size": 32},
        stored=4,
        streamed=32,
        block=2,
        validation=4,
        learner={**case.learner, "model": model, "batch_size": 8},
        stream=replace(case.stream, share=0.5),
        others=tuple(replace(stream, share=0.5) for stream in case.others),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HEAT", "DARCY"])
def test_every_comparison_has_its_three_rows(benchmark, report, name):
    module = benchmark("online_vs_offline")
    case = tiny(module, getattr(module, name))
    seeds = (331, 337)
    comparison = module.compare(case, seeds)
    module.say(report, comparison, seeds)
    found = rows(report)
    labels = [module.STORED, module.STREAMED, module.OWN, *(stream.label for stream in case.others)]
    assert all(label in found for label in labels)
    assert [trained.unique for trained in comparison.rows[module.STORED]] == [4, 4]
    assert [trained.unique for trained in comparison.rows[module.OWN]] == [32, 32]
    assert all(4 < trained.unique <= 32 for trained in comparison.rows[module.STREAMED])
    assert comparison.batches == 32 * (10 if name == "HEAT" else 1) // 8
    assert all(0 < trained.relative < 10 for trained in comparison.rows[module.STREAMED])
    again = module.compare(case, seeds[:1])
    for label in labels:
        assert again.rows[label][0].mse == comparison.rows[label][0].mse, "the figure follows from the seed"


def test_gain_and_price_are_medians_of_the_same_seeds_ratios(benchmark):
    module = benchmark("online_vs_offline")

    def trained(*errors):
        return [module.Trained(error, 0.0, 1, 1.0) for error in errors]

    table = {
        module.STORED: trained(100.0, 200.0, 10.0),
        module.STREAMED: trained(20.0, 20.0, 5.0),
        module.OWN: trained(20.0, 16.0, 4.8),
    }
    comparison = module.Comparison(module.HEAT, 10, table)
    assert comparison.gain == pytest.approx(-0.8)
    assert comparison.price == pytest.approx(5 / 4.8 - 1)
    assert comparison.ok
    assert not module.Comparison(replace(module.HEAT, gain=0.81), 10, table).ok
    assert not module.Comparison(replace(module.HEAT, price=0.04), 10, table).ok


def test_a_storage_budget_between_blocks_is_refused(benchmark):
    module = benchmark("online_vs_offline")
    case = replace(module.QUICK[0][0], stored=12)
    data = module.Data(case.spec(331, case.stream, Path()), [], [])
    with pytest.raises(ValueError, match="a storage budget of 12 samples is not a multiple of the block of 5"):
        data.first(case.stored)


# -- ring and Fourier step ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_ring_is_measured_against_copies_and_loaders(benchmark, report):
    ring = benchmark("ring")
    ratios = ring.measure(report, 64, ring.Sizes(stored_bytes=4 << 20, seconds=0.005, repeats=1))
    assert ratios.copy > 0
    assert set(ratios.loaders) == {"xarray", "zarr-python", "HDF5"}
    assert {"ring, draw", "ring, put", "copy_ of a batch", "reservoir", "firo", "fifo"} <= set(rows(report))


@pytest.mark.slow
def test_the_fourier_steps_compute_the_same_and_are_timed(benchmark):
    steps = benchmark("fno_step").contenders(32, 4)
    assert {"own", "own, bf16", "plain rfft2"} <= set(steps)
    assert all(step() > 0 for step in steps.values())


# -- the data set's files ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_writer_and_reader_is_measured_on_equal_fields(benchmark, report, tmp_path):
    module = benchmark("dataset_io")
    sizes = module.Sizes(written_bytes=16 << 20, stored_bytes=16 << 20, seconds=0.01, repeats=1)
    ratios = module.measure(report, module.Case(128, 16 << 20), sizes, tmp_path)
    assert ratios.write > 0
    assert ratios.read > 0
    assert ratios.best not in (module.OURS, module.COPY)
    found = rows(report)
    assert {*module.WRITERS, *module.COLD, "ours, StreamDataset", "xarray", "tensorstore"} <= set(found)
    assert list(tmp_path.iterdir()) == []


# -- many solver actors ------------------------------------------------------------------------------------------------


def between(benchmark, streaming: float, alone: tuple[float, float], others: tuple[float, float, float]):
    module, online = benchmark("scaling_rows"), benchmark("online_run")
    times = dict.fromkeys((field.name for field in fields(online.OnlineRun)), 0.0)
    spent = {"driver": 0.4, "Ray": 0.2, "others": others[1] * streaming * module.cores()}
    run = online.OnlineRun(**times | {"streaming": streaming, "processor": spent})
    return module.Between(run, module.Alone(alone[0], others[0]), module.Alone(alone[1], others[2]))


def test_efficiency_is_what_one_solver_needs_shared_out_over_the_streaming_time(benchmark):
    module = benchmark("scaling")
    case = replace(module.SLEEP, block=10, blocks=20, actors=4)
    quiet = (0.01, 0.05, 0.02)
    taken = [
        between(benchmark, 10.0, (0.05, 0.05), quiet),  # alone 10 s
        between(benchmark, 12.5, (0.06, 0.04), quiet),  # 10 s
        between(benchmark, 14.0, (0.04, 0.04), quiet),  # 8 s
    ]
    row = module.Row(case, taken)
    assert row.ideal.median == pytest.approx(0.05 * 200)
    assert row.efficiency == row.efficiency_of_all == pytest.approx(10 / 12.5)
    assert row.lost_ms == pytest.approx(12.5)
    assert row.processor_ms("driver") == pytest.approx(5.0)
    assert row.disturbance == pytest.approx(0.05)


def test_disturbed_runs_count_only_where_others_are_missing(benchmark):
    module = benchmark("scaling")
    case = replace(module.SLEEP, block=10, blocks=20, actors=4)
    noisy = [(0.2, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.2)]
    disturbed = [between(benchmark, 20.0, (0.05, 0.05), others) for others in noisy]
    row = module.Row(case, [*disturbed, between(benchmark, 10.0, (0.05, 0.05), (0.0, 0.0, 0.0))])
    assert (row.efficiency, len(row.undisturbed), row.disturbance) == (pytest.approx(0.5), 1, 0.2)
    row.taken.extend(between(benchmark, 10.0, (0.05, 0.05), (0.0, 0.0, 0.0)) for _ in range(2))
    assert (row.efficiency, row.efficiency_of_all) == (pytest.approx(1.0), pytest.approx(0.75))


def test_a_run_is_repeated_until_enough_were_undisturbed(benchmark, monkeypatch):
    module = benchmark("scaling_rows")
    quiet = iter([True, False, True, True, False, True])
    monkeypatch.setattr(module.Case, "alone", lambda case, folder: module.Alone(0.05, 0.0))
    monkeypatch.setattr(
        module.Case,
        "online",
        lambda case, folder: between(benchmark, 10.0, (0.05, 0.05), (0.0, 0.0 if next(quiet) else 0.3, 0.0)).run,
    )
    (row,) = module.measure(benchmark("scaling").SLEEP, (2,), 3, 5)
    assert (len(row.taken), len(row.undisturbed)) == (4, 3)
    (row,) = module.measure(benchmark("scaling").SLEEP, (2,), 2)
    assert (len(row.taken), len(row.undisturbed)) == (2, 1)


def test_the_model_names_what_breaks_first(benchmark, report):
    module = benchmark("scaling_model")
    limits = module.Limits(16 << 20, 2e-3, 40e-3, 8e-3, 5e-3, {64: 2e-5, 1024: 2e-5}, {64: 1e-4, 1024: 1.06e-3})
    module.tell_model(report, replace(limits, block_bytes=2 << 20), limits, 4e-3)
    text = "\n".join(report.lines)
    assert "1,067 at 1,000 nodes and S = 60 s, 16.7 GiB/s" in text
    assert "First to break is `writer: blocks of 16 MiB`, at 25.0 blocks a second: 23 nodes" in text
    assert "1,000 nodes from S = 2,560 s on" in text
    assert "128 ms of 128,000" in text
    assert rows(report)["driver: processor time of a block"] == ["4.00", "250", "", "234"]
    assert rows(report)["driver, which does both in turn"] == ["6.00", "167", "", "156"]


@pytest.mark.slow
def test_what_one_of_each_can_do_is_measured(benchmark):
    ray.shutdown()  # what tests before have left open
    limits = benchmark("scaling_limits").measure_limits(2**20, (1, 8), 3)
    assert limits.block_bytes == pytest.approx(2**20, rel=0.03)
    assert set(limits.wait_s) == set(limits.decide_s) == {1, 8}
    assert all(0 < value < 5 for value in (limits.journal_s, limits.store_s, limits.ingest_s, limits.put_s))
    assert all(0 < value < 1 for value in (*limits.wait_s.values(), *limits.decide_s.values()))


def test_late_samples_are_made_up_within_a_block_and_not_between_blocks(benchmark, monkeypatch):
    module = benchmark("sleeping")
    now, naps = [100.0], []
    late = iter([0.0, 3.0, 0.0, 0.0])
    monkeypatch.setattr(module, "clock", [0, 0.0])
    fake = SimpleNamespace(
        perf_counter=lambda: now[0], sleep=lambda s: (naps.append(s), now.append(now.pop() + s + next(late)))
    )
    monkeypatch.setattr(module, "time", fake)
    problem = module.Sleeping(side=4, seconds=10.0, block=3)
    for number in range(4):
        if number == 3:
            now[0] += 7.0  # a new block has come that much later
        problem.draw(np.zeros(1), np.random.default_rng(7))
        problem.fields({}, np.ones(8))
    assert naps == [10.0, 10.0, 7.0, 10.0]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_of_sleeping_actors_is_measured(benchmark):
    module = benchmark("scaling")
    case = replace(module.SLEEP, options={"side": 16, "seconds": 0.02}, block=4, blocks=5)
    (row,) = module.measure(case, (2,), 1)
    assert 0.0198 < row.alone.median < 0.1
    assert 0.1 < row.efficiency < 1.2


# -- batched_gpu -------------------------------------------------------------------------------------------------------


def test_without_a_gpu_its_columns_are_empty_and_a_core_is_measured(benchmark, report):
    module = benchmark("batched_gpu")
    assert module.measured(report, None, module.Case((16, 16), 3), 1) == {}
    found = rows(report)
    for name in ("ours", "torch", "sparse CG"):
        assert found[name][:4] == [""] * 4
        assert float(found[name][5].replace(",", "")) > 0
    assert float(found["sparse CG"][6]) > 2 * float(found["ours"][6])


def test_what_is_not_certified_is_not_timed(benchmark):
    module = benchmark("batched_gpu")
    stencil, rhs = module.problem(module.Case((16, 16), 2), "cpu")
    with pytest.raises(RuntimeError, match="not certified"):
        module.sparse_cg(np, "scipy", stencil, rhs, 1, rtol=1e-3)


# -- online_aggregation ------------------------------------------------------------------------------------------------


def test_new_media_are_what_they_say(benchmark):
    module = benchmark("online_aggregation")
    case = module.Case("any", "darcy", {"size": 32, "coefficient": "log_normal"})
    problem = load_problem("darcy", case.options, folder=Path())
    indptr, indices = problem.pattern()
    values, _ = next(case.stream(problem))
    matrix = csr_array((values, indices, indptr))
    dense = matrix.toarray()
    squeezed, reacting = (
        csr_array((change(matrix, np.random.default_rng(7)), indices, indptr)).toarray()
        for change in (module.stretched, module.reacting)
    )
    along, across = (np.eye(1024, k=k, dtype=bool) for k in (1, 32))
    np.testing.assert_array_equal(squeezed[along], dense[along])
    np.testing.assert_allclose(squeezed[across], dense[across] / 50)
    np.testing.assert_allclose(squeezed.sum(axis=1), dense.sum(axis=1), atol=1e-12)
    added = reacting - dense
    np.testing.assert_allclose(added, np.diag(np.full(1024, added[0, 0])), atol=1e-12)
    assert 0.01 < added[0, 0] < 0.1


def test_online_training_is_compared_on_samples_that_come_later(benchmark, monkeypatch):
    module = benchmark("online_aggregation")
    monkeypatch.setattr(module, "STEPS_A_VERSION", 1)
    monkeypatch.setattr(module, "HELD_OUT", 3)
    found = module.study(module.Case("any", "darcy", {"size": 32}), 2)
    assert (found.unknowns, found.steps, found.versions) == (1024, 2, 0)
    assert found.ratio == 1
    assert found.shipped == found.online < found.classical
