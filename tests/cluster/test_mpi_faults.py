"""Functions on MPI ranks that fail, die, hang or are cancelled: what is told, and that nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mpi_traces import Traces, launchers_of, open_files
from running import POLL, wait_for_exit

from forebay.cluster import mpi_service
from forebay.cluster.mpi import MpiCancelled, MpiError, MpiService, MpiTimeout, run_mpi
from forebay.cluster.mpi_launch import how_it_ended
from forebay.cluster.mpi_ranks import GRACE_S

FUNCTIONS = Path(__file__).with_name("mpi_functions.py")
LIMIT_S = 60.0


def named(function: str) -> str:
    return f"{FUNCTIONS}:{function}"


@pytest.fixture(scope="module")
def lasting():
    with MpiService(2) as ranks:
        yield ranks


@pytest.fixture
def service(lasting):
    lasting.start()  # a test before may have killed the ranks
    return lasting


def wait_for_file(path: Path, timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        POLL.wait(0.02)


def when_there(path: Path, action) -> threading.Thread:
    """Do something once the ranks have made a file."""

    def wait_and_act():
        wait_for_file(path)
        action()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.mpi
def test_an_exception_on_one_rank_ends_the_others_that_wait_for_it(service):
    traces = Traces.of(service.pids)
    began = time.monotonic()
    with pytest.raises(MpiError, match="one_raises: rank 1 of 2 raised ZeroDivisionError: no pivot in row 7") as caught:
        service.run(named("one_raises"), timeout_s=LIMIT_S)
    assert time.monotonic() - began < GRACE_S + 3
    assert caught.value.rank == 1
    assert "in one_raises" in caught.value.traceback
    assert "mpi_functions.py" in caught.value.traceback
    assert not service.alive
    traces.assert_gone()
    assert service.run(named("nothing"), timeout_s=LIMIT_S).start_s > 0


@pytest.mark.mpi
def test_an_exception_on_all_ranks_leaves_them_up_and_no_message_between_them(service):
    pids = service.pids
    with pytest.raises(
        MpiError, match="all ranks raised; the first, rank 1 of 2 raised KeyError: 'no material 1'"
    ) as caught:
        service.run(named("all_raise"), timeout_s=LIMIT_S)
    assert caught.value.rank == 1
    with pytest.raises(MpiError, match="raised SystemExit: enough"):
        service.run(named("leave"), timeout_s=LIMIT_S)
    result = service.run(named("messages"), timeout_s=LIMIT_S)
    assert result.value == [False, False]
    assert (service.pids, result.start_s) == (pids, 0.0)


@pytest.mark.mpi
def test_ranks_are_started_anew_before_mpi_runs_out_of_communicators(monkeypatch):
    monkeypatch.setattr(mpi_service, "RENEWALS", 1)
    with MpiService(2) as ranks:
        for alive in (True, False):
            with pytest.raises(MpiError, match="all ranks raised"):
                ranks.run(named("all_raise"), timeout_s=LIMIT_S)
            assert ranks.alive is alive


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segfault", r"was killed by signal 11 \(Segmentation fault\)(.|\n)*Fatal Python error: (.|\n)*Segmentation"),
        ("exit", "left with exit status 3 and without an answer"),
        ("silent exit", "left with exit status 0 and without an answer"),
        ("abort", "called MPI_Abort with 7"),
    ],
)
def test_a_rank_that_ends_is_named_with_how_it_ended(service, how, message):
    traces = Traces.of(service.pids)
    with pytest.raises(MpiError, match=f"^rank 1 of 2 {message}") as caught:
        service.run(named("end"), {}, {"rank": 1, "how": how}, timeout_s=LIMIT_S)
    assert caught.value.rank == 1
    assert "rank 1 has something to say" in caught.value.output
    assert "rank 1 has something to say" in str(caught.value)
    traces.assert_gone()


@pytest.mark.mpi
def test_a_rank_killed_in_the_middle_is_named_and_the_next_run_starts_new_ones(service, tmp_path):
    traces = Traces.of(service.pids)
    sign = tmp_path / "sign"
    killer = when_there(sign, lambda: os.kill(service.pids[1], signal.SIGKILL))
    with pytest.raises(MpiError, match=r"^rank 1 of 2 was killed by signal 9 \(Killed; memory may have run out\)"):
        service.run(named("wait"), {}, {"sign": str(sign), "how": "in a collective"}, timeout_s=LIMIT_S)
    killer.join()
    traces.assert_gone()
    assert service.run(named("nothing"), timeout_s=LIMIT_S).start_s > 0


@pytest.mark.mpi
@pytest.mark.parametrize("victim", ["a rank", "what waits for a rank", "mpiexec"])
def test_idle_ranks_that_were_killed_are_replaced_by_the_next_run(service, victim):
    traces = Traces.of(service.pids)
    waiting, _, mpiexec = launchers_of(service.pids[0])
    dead = {"a rank": service.pids[0], "what waits for a rank": waiting, "mpiexec": mpiexec}[victim]
    os.kill(dead, signal.SIGKILL)
    assert wait_for_exit([dead], 5) == []
    assert service.run(named("nothing"), timeout_s=LIMIT_S).start_s > 0
    traces.assert_gone()


@pytest.mark.mpi
def test_ranks_whose_launcher_has_lost_its_proxy_work_on_and_end():
    with MpiService(2) as ranks:
        traces = Traces.of(ranks.pids)
        _, proxy, _ = launchers_of(ranks.pids[0])
        os.kill(proxy, signal.SIGKILL)
        assert wait_for_exit([proxy], 5) == []
        assert ranks.run(named("messages"), timeout_s=LIMIT_S).value == [False, False]
    traces.assert_gone()


@pytest.mark.mpi
def test_a_time_limit_ends_the_ranks_and_what_they_started_and_shows_where_they_were(service, tmp_path):
    sign = tmp_path / "sign"
    found: list[Traces] = []
    looker = when_there(sign, lambda: (POLL.wait(0.3), found.append(Traces.of(service.pids))))
    options = {"sign": str(sign), "how": "in a collective", "child": True}
    began = time.monotonic()
    with pytest.raises(MpiTimeout, match=r"wait on 2 MPI ranks did not end within 2.5 s(.|\n)*in wait") as caught:
        service.run(named("wait"), {}, options, timeout_s=2.5)
    assert 2.5 <= time.monotonic() - began < 6
    assert "[0]   File" in caught.value.output
    assert "[1]   File" in caught.value.output
    looker.join()
    (traces,) = found
    assert len(traces.started) == 2
    traces.assert_gone()


@pytest.mark.mpi
@pytest.mark.parametrize("way", ["the event", "closing the service"])
def test_a_cancelled_task_ends_its_ranks(tmp_path, way):
    before = open_files()
    ranks = MpiService(2)
    ranks.start()
    traces = Traces.of(ranks.pids)
    cancel = threading.Event()
    sign = tmp_path / "sign"
    canceller = when_there(sign, cancel.set if way == "the event" else ranks.close)
    began = time.monotonic()
    with pytest.raises(MpiCancelled, match="wait on 2 MPI ranks was cancelled"):
        ranks.run(named("wait"), {}, {"sign": str(sign), "how": "in a collective"}, timeout_s=LIMIT_S, cancel=cancel)
    assert time.monotonic() - began < 10
    canceller.join()
    traces.assert_gone()
    ranks.close()
    assert open_files() == before


@pytest.mark.mpi
def test_one_task_that_fails_leaves_nothing_either(tmp_path):
    before = set(os.listdir("/dev/shm"))
    with pytest.raises(MpiError, match="left with exit status 3"):
        run_mpi(named("end"), {}, {"rank": 0, "how": "exit"}, ranks=2, timeout_s=LIMIT_S)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "forebay" in name}


PARENT = """
import sys, threading, time
from forebay.cluster.mpi import MpiService
service = MpiService(2)
service.start()
print(*service.pids, flush=True)
function, sign, how = sys.argv[1:]
if how == "idle":
    sys.stdin.read()
else:
    service.run(function, {}, {"sign": sign, "how": how, "child": True})
"""


@pytest.mark.mpi
@pytest.mark.parametrize("how", ["idle", "in a collective", "holding the lock of the interpreter"])
def test_ranks_end_with_the_process_that_started_them(tmp_path, how):
    sign = tmp_path / "sign"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, named("wait"), str(sign), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pids = tuple(int(word) for word in parent.stdout.readline().split())
    if how != "idle":
        wait_for_file(sign)
        POLL.wait(0.3)
    traces = Traces.of(pids)
    parent.kill()
    parent.wait(10)
    traces.assert_gone()


@pytest.mark.mpi
def test_a_process_that_forgets_to_close_its_service_ends_in_order(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PARENT, "", "", "idle"], input="", capture_output=True, text=True, timeout=60, check=True
    )
    assert wait_for_exit([int(word) for word in result.stdout.split()], 5) == []


FAMILY = """
import subprocess, sys, time
from forebay.cluster.mpi_task import die_with
die_with(int(sys.argv[1]))
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""


def test_the_end_of_the_lifeline_ends_a_process_and_what_it_has_started():
    theirs, ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY, str(theirs)], stdout=subprocess.PIPE, pass_fds=[theirs], start_new_session=True
    )
    os.close(theirs)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.close(ours)
    assert process.wait(5) == -signal.SIGKILL
    assert wait_for_exit([child], 5) == []


def test_a_process_whose_lifeline_has_ended_before_does_not_start():
    theirs, ours = os.pipe()
    os.close(ours)
    command = [sys.executable, "-c", FAMILY, str(theirs)]
    result = subprocess.run(command, capture_output=True, pass_fds=[theirs], start_new_session=True, check=False)
    os.close(theirs)
    assert result.returncode == 1
    assert b"the starter was gone before this rank was up" in result.stderr


@pytest.mark.parametrize(
    ("status", "output", "said"),
    [
        (0, "", (1, "left with exit status 0 and without an answer")),
        (3 << 8, "", (1, "left with exit status 3 and without an answer")),
        (11, "", (1, "was killed by signal 11 (Segmentation fault)")),
        (9, "", (1, "was killed by signal 9 (Killed; memory may have run out)")),
        (None, "", (1, "ended without an answer")),
        (9, "[2] Abort(-5) on node 2 (rank 2 in comm 0): application", (2, "called MPI_Abort with -5")),
    ],
)
def test_the_end_of_a_rank_is_put_into_words(status, output, said):
    assert how_it_ended(1, status, output) == said


@pytest.mark.mpi
def test_a_service_that_is_dropped_takes_its_ranks_along():
    before = open_files()
    ranks = MpiService(2)
    ranks.start()
    traces = Traces.of(ranks.pids)
    del ranks
    gc.collect()
    traces.assert_gone()
    assert open_files() == before
