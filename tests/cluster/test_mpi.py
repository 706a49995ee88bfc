"""Functions on MPI ranks: what goes in, what comes out, what it costs, and where it works."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mpi_traces import Traces, cpu_seconds, open_files
from running import POLL, wait_for_exit

from forebay.cluster.mpi import (
    MpiCancelled,
    MpiError,
    MpiService,
    MpiTimeout,
    MpiUnavailable,
    available,
    find_mpiexec,
    run_mpi,
)
from forebay.cluster.mpi_launch import Patience, rank_environment
from forebay.cluster.mpi_ranks import END_S

FUNCTIONS = Path(__file__).with_name("mpi_functions.py")
LIMIT_S = 60.0


def named(function: str) -> str:
    return f"{FUNCTIONS}:{function}"


@pytest.fixture(scope="module")
def service():
    with MpiService(2) as ranks:
        yield ranks


@pytest.mark.mpi
def test_two_ranks_reduce_an_array_and_nothing_of_them_is_left():
    x = np.random.default_rng(7).standard_normal((5, 3))
    before = open_files()
    result = run_mpi(named("total"), {"x": x}, {"factor": 0.5}, ranks=2, timeout_s=LIMIT_S)
    assert result.value == {"ranks": 2, "numbers": [0, 1]}
    assert np.array_equal(result.arrays["whole"], (x + 2 * x) * 0.5)
    assert 0 < result.seconds < result.start_s
    assert open_files() == before


@pytest.mark.mpi
def test_arrays_of_every_layout_come_back_bit_equal(service):
    rng = np.random.default_rng(11)
    arrays = {
        "plain": rng.standard_normal((4, 5)),
        "strided": rng.standard_normal((8, 9))[::2, ::-3],
        "fortran": np.asfortranarray(rng.standard_normal((3, 4))),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float64(2.5),
        "bytes": rng.integers(0, 256, 13).astype(np.uint8),
        "nan": np.array([np.nan, -0.0, np.inf]),
    }
    result = service.run(named("echo"), arrays, {"tolerances": (1e-8, None)}, timeout_s=LIMIT_S)
    assert list(result.arrays) == list(arrays)
    for name, array in arrays.items():
        assert result.arrays[name].dtype == array.dtype
        assert result.arrays[name].shape == array.shape
        assert result.arrays[name].tobytes() == np.asarray(array).tobytes(), name
    assert result.value["options"] == {"tolerances": [1e-8, None]}


@pytest.mark.mpi
def test_ranks_cannot_write_into_arrays_and_the_caller_can(service):
    x = np.arange(4.0)
    result = service.run(named("echo"), {"x": x}, timeout_s=LIMIT_S)
    assert result.value["writable"] == []
    result.arrays["x"][0] = 9.0
    assert x[0] == 0.0


@pytest.mark.mpi
def test_64_mib_go_there_and_back_faster_than_any_text_could(service):
    x = np.random.default_rng(13).standard_normal(2**23)
    began = time.perf_counter()
    back = service.run(named("echo"), {"x": x}, timeout_s=LIMIT_S).arrays["x"]
    took = time.perf_counter() - began
    assert np.array_equal(back, x)
    assert took < 4.0, f"{took:.2f} s; 0.1 s on a quiet machine"


@pytest.mark.mpi
def test_a_service_pays_its_start_once_and_keeps_the_state_of_its_ranks():
    with MpiService(2) as ranks:
        traces = Traces.of(ranks.pids)
        first = ranks.run(named("count_calls"), timeout_s=LIMIT_S)
        times = []
        for calls in range(2, 22):
            began = time.perf_counter()
            result = ranks.run(named("count_calls"), timeout_s=LIMIT_S)
            times.append(time.perf_counter() - began)
            assert (result.value, result.start_s) == (calls, 0.0)
    traces.assert_gone()
    once = run_mpi(named("count_calls"), ranks=2, timeout_s=LIMIT_S)
    assert first.value == once.value == 1
    assert np.median(times) < once.start_s / 10, f"{np.median(times) * 1e3:.2f} ms against {once.start_s:.2f} s"


@pytest.mark.mpi
def test_closing_lets_the_ranks_end_in_order(tmp_path):
    with MpiService(2) as ranks:
        ranks.run(named("leave_word"), {}, {"sign": f"{tmp_path}/left"}, timeout_s=LIMIT_S)
        assert not list(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"left0", "left1"}


@pytest.mark.mpi
def test_idle_ranks_use_no_cpu(service):
    service.run(named("nothing"), timeout_s=LIMIT_S)
    before = [cpu_seconds(pid) for pid in service.pids]
    POLL.wait(1.0)
    spent = [cpu_seconds(pid) - start for pid, start in zip(service.pids, before, strict=True)]
    assert max(spent) <= 0.05, spent


@pytest.mark.mpi
def test_tasks_of_two_threads_queue(service):
    def run(number: int) -> tuple[int, list[int]]:
        result = service.run(named("sleep_then_number"), {}, {"number": number}, timeout_s=LIMIT_S)
        return result.value, result.arrays["x"].tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [(number, [number] * 3) for number in range(4)]


@pytest.mark.mpi
def test_an_outer_launcher_is_not_seen_by_the_ranks_and_threads_are(monkeypatch):
    outer = {"SLURM_JOB_ID": "7", "SLURM_NODELIST": "n[1-4]", "SLURM_NNODES": "4", "SLURM_NTASKS": "8"}
    outer |= {"PMI_RANK": "3", "PMI_SIZE": "8", "PMI_FD": "99", "HYDRA_LAUNCHER": "slurm", "OMPI_COMM_WORLD_RANK": "3"}
    outer |= {"PMIX_RANK": "3", "MPI_LOCALRANKID": "3", "HYDRA_HOST_FILE": "/nonexistent"}
    for key, value in outer.items():
        monkeypatch.setenv(key, value)
    result = run_mpi(named("environment"), ranks=2, threads=3, timeout_s=LIMIT_S)
    assert [rank["PMI_RANK"] for rank in result.value] == ["0", "1"]
    for rank in result.value:
        assert rank["OMP_NUM_THREADS"] == "3"
        assert rank["PMI_SIZE"] == "2"
        assert not [key for key in rank if key.startswith(("SLURM_", "OMPI_", "HYDRA_"))]


def test_the_environment_passes_on_but_for_launchers():
    kept = rank_environment({"HOME": "/h", "PYTHONPATH": "/mine", "PMIX_RANK": "1", "SLURM_PROCID": "2"}, threads=2)
    assert kept["HOME"] == "/h"
    assert kept["PYTHONPATH"].split(os.pathsep)[0] == "/mine"
    assert not {"PMIX_RANK", "SLURM_PROCID"} & set(kept)
    assert {kept[key] for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")} == {"2"}


@pytest.mark.mpi
def test_what_is_importable_here_is_importable_on_ranks_that_are_up(service, tmp_path, monkeypatch):
    service.start()
    (tmp_path / "made_late.py").write_text("def number(comm, arrays, options):\n    return {}, comm.allreduce(21)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert service.run("made_late:number", timeout_s=LIMIT_S).value == 42


@pytest.mark.mpi
def test_an_edited_file_reaches_ranks_that_are_up(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (7, 11):
        Path("mine.py").write_text(f"def number(comm, arrays, options):\n    return {{}}, {number}\n")
        assert service.run("mine.py:number", timeout_s=LIMIT_S).value == number


@pytest.mark.mpi
def test_megabytes_of_output_hold_nothing_up_and_only_the_end_is_kept(service):
    service.run(named("flood"), timeout_s=LIMIT_S)
    with pytest.raises(MpiError, match="after the flood") as caught:
        service.run(named("flood"), {}, {"raise": True}, timeout_s=LIMIT_S)
    assert len(caught.value.output) <= 65536
    assert len(str(caught.value)) < 3000


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            f"{FUNCTIONS}:nowhere",
            r"cannot load it: MpiError: .*mpi_functions.py has no function 'nowhere'; it has .*total",
        ),
        (f"{FUNCTIONS}:FUNCTIONS", "has no function 'FUNCTIONS'"),
        (
            "no_such_module:run",
            r"no_such_module:run: rank \d of 2 cannot load it: ModuleNotFoundError: No module named",
        ),
    ],
)
def test_a_function_that_is_not_there_is_told_and_the_ranks_live_on(service, function, message):
    service.start()
    pids = service.pids
    with pytest.raises(MpiError, match=message):
        service.run(function, timeout_s=LIMIT_S)
    assert service.run(named("nothing"), timeout_s=LIMIT_S).start_s == 0.0
    assert service.pids == pids


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no pair", r"returned what cannot be sent: a int; rank 0 returns a pair"),
        ("a list of arrays", "a tuple; rank 0 returns a pair"),
        ("a set", "Object of type set is not JSON serializable"),
        ("a numpy integer", "Object of type int64 is not JSON serializable"),
        ("an array of objects", "array 'bad' has dtype object, which cannot pass to another process"),
    ],
)
def test_a_result_that_cannot_be_sent_is_told_and_the_ranks_live_on(service, what, message):
    service.start()
    with pytest.raises(MpiError, match=message) as caught:
        service.run(named("hand_back"), {}, {"what": what}, timeout_s=LIMIT_S)
    assert caught.value.rank == 0
    assert service.run(named("nothing"), timeout_s=LIMIT_S).start_s == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "total"}, "function = 'total' is neither \"module:function\" nor"),
        ({"function": "a.py:b c"}, "is neither"),
        ({"function": "/nonexistent/f.py:run"}, "there is no file /nonexistent/f.py"),
        ({"options": {"x": {1, 2}}}, "options cannot be written as JSON"),
        ({"options": {"x": np.zeros(2)}}, "pass arrays as arrays"),
        ({"arrays": {"x": [None, 1]}}, "array 'x' has dtype object"),
        ({"arrays": {7: [1.0]}}, "array name 7 is a int; use text"),
        ({"ranks": 0}, "ranks = 0 must be at least 1"),
        ({"threads": -1}, "threads = -1 must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s = 0.0 must be more than 0 s"),
    ],
)
def test_arguments_that_cannot_be_sent_are_refused_before_anything_starts(change, message, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ValueError, match=message):
        run_mpi(**({"function": named("nothing"), "ranks": 2} | change))


def test_a_machine_without_mpiexec_or_mpi4py_is_told_what_to_install(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MpiUnavailable, match=r"mpi4py is missing from .*pip install mpi4py"):
            find_mpiexec()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MpiUnavailable, match=r"mpiexec is neither beside .* nor on PATH; .*pip install mpich mpi4py"):
        run_mpi(named("nothing"), ranks=2)
    assert not available()
    (tmp_path / "mpiexec").touch(mode=0o700)
    assert find_mpiexec() == tmp_path / "mpiexec"
    assert available()


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("raise ImportError('libmpi is broken')", MpiError, "could not be started(.|\n)*ImportError: libmpi is broken"),
        ("import time; time.sleep(600)", MpiTimeout, "the start of 2 MPI ranks did not end within 2.5 s"),
        (
            "class COMM_WORLD:\n rank, size = 0, 1\n Dup = classmethod(lambda c: c)\n Barrier = classmethod(id)",
            MpiError,
            "mpiexec started 2 ranks, but MPI_COMM_WORLD has 1: mpiexec and mpi4py belong to different",
        ),
    ],
)
def test_ranks_that_do_not_come_up_are_told_and_gone(tmp_path, monkeypatch, source, error, message):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text(
        f"import os, pathlib\npathlib.Path(f'{tmp_path}/{{os.getpid()}}').touch()\n{source}"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(error, match=message):
        run_mpi(named("nothing"), ranks=2, timeout_s=2.5 if error is MpiTimeout else LIMIT_S)
    pids = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert pids
    assert wait_for_exit(pids, 0.1) == []


@pytest.mark.mpi
def test_ranks_that_hang_before_they_call_are_ended_without_delay(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text(
        f"import os, time, pathlib\npathlib.Path(f'{tmp_path}/{{os.getpid()}}').touch()\ntime.sleep(600)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(MpiTimeout, match="the start of 2 MPI ranks did not end within 2 s"):
        run_mpi(named("nothing"), ranks=2, timeout_s=2)
    assert time.monotonic() - began < 2 + END_S
    pids = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(pids) == 2
    assert wait_for_exit(pids, 1) == []


@pytest.mark.mpi
def test_a_closed_service_says_so_and_closing_twice_is_allowed():
    ranks = MpiService(1)
    assert not ranks.alive
    ranks.start()
    assert ranks.alive
    ranks.close()
    ranks.close()
    assert not ranks.alive
    with pytest.raises(MpiCancelled, match="this MPI service is closed; make a new one"):
        ranks.run(named("nothing"))


def test_patience_ends_at_the_limit_or_at_the_cancellation():
    cancel = threading.Event()
    assert Patience("it", None, cancel).slice_s() > 0
    assert 0 < Patience("it", 0.01, cancel).slice_s() <= 0.01
    with pytest.raises(MpiTimeout, match="it did not end within 2 s; raise timeout_s"):
        Patience("it", 2.0, cancel, began=time.monotonic() - 3).slice_s()
    cancel.set()
    with pytest.raises(MpiCancelled, match="it was cancelled"):
        Patience("it", None, cancel).slice_s()


IN_RAY = """
import os, sys, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")

@ray.remote(num_cpus=1)
def task(function):
    from forebay.cluster.mpi import run_mpi
    import numpy as np
    return run_mpi(function, {"x": np.ones(3)}, {"factor": 2}, ranks=2, timeout_s=60).arrays["whole"].tolist()

@ray.remote(num_cpus=1)
class Actor:
    def start(self):
        from forebay.cluster.mpi import MpiService
        self.service = MpiService(2)
        self.service.start()
        return self.service.pids

print(ray.get(task.remote(sys.argv[1])))
actor = Actor.remote()
pids = ray.get(actor.start.remote())
assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
ray.kill(actor)
print(*pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.ray
@pytest.mark.mpi
def test_a_ray_task_runs_ranks_and_a_killed_actor_leaves_none():
    process = subprocess.Popen(
        [sys.executable, "-c", IN_RAY, named("total")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "[6.0, 6.0, 6.0]\n"
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        assert wait_for_exit(pids, 5) == []
    finally:
        process.communicate("", timeout=60)
