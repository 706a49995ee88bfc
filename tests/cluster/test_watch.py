"""`forebay status --watch`: what it reads, what it says, and when it stops."""

import io
import re

import pytest
from rich.console import Console
from suites.fake_run import T0, FakeRun, training_line, validation_line

from forebay.cluster import cli, watch
from forebay.cluster.submission import Submission
from forebay.cluster.tail import Tail
from forebay.cluster.watch_state import RunState
from forebay.pipeline.errors import RunError


@pytest.fixture
def fake(tmp_path):
    run = FakeRun(tmp_path / "run")
    yield run
    run.close()


class Clock:
    """The time of day in a test."""

    def __init__(self, t=T0):
        self.t = t

    def __call__(self):
        return self.t


def rows(watched):
    watched.look()
    return dict(watched.rows())


# -- reading on --------------------------------------------------------------------------------------------------------


def test_a_tail_reads_every_line_once_and_waits_for_whole_ones(tmp_path):
    path = tmp_path / "lines"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text('{"a": 1}\n{"a"')
    assert tail.lines() == [{"a": 1}]
    assert tail.lines() == []
    with path.open("a") as file:
        file.write(': 2}\n{"a": 3}\n')
    assert tail.lines() == [{"a": 2}, {"a": 3}]


def test_a_tail_touches_nothing_that_it_has_read(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n')
    tail = Tail(path)
    tail.lines()
    path.write_text('rubbish!\n{"a": 2}\n')
    assert tail.lines() == [{"a": 2}]


def test_a_tail_goes_on_where_the_next_attempt_has_cut_a_torn_line_off(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n{"long": "torn by a ki')
    tail = Tail(path)
    assert tail.lines() == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert tail.lines() == [{"a": 2}]
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n\0\0\0\0\n')
    assert tail.lines() == [], "a power failure left zeros, which the next attempt cuts off"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert tail.lines() == [{"a": 3}]


def test_a_tail_says_where_a_file_is_damaged(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n{"a":\n{"a": 3}\n')
    with pytest.raises(RunError, match=r"lines': the line at byte 9 is not JSON although lines follow it; restore"):
        Tail(path).lines()


# -- what it says ------------------------------------------------------------------------------------------------------


def test_a_run_that_solves_and_trains_is_told_with_its_speeds_and_what_is_left(fake):
    clock = Clock()
    watched = watch.Watch(fake.folder, clock)
    fake.begin(solvers=2)
    fake.validation_set()
    clock.t = T0 + 6.25
    first = rows(watched)
    assert first["run"] == "darcy-test: validation, 6.25 s"
    assert first["validation set"] == "30 of 30 solved"
    assert "training" not in first
    fake.produce(range(3))
    fake.train(0, 20, begin_s=6.5)
    fake.flow(10.0, writer_busy_s=0.7, spilled_bytes=3 * 2**20)
    fake.measure("train", 11.5, **training_line(20) | {"batch": 25, "draw_s": 0.25, "step_s": 4.25})
    clock.t = T0 + 11.5
    assert rows(watched) == {
        "run": "darcy-test: streaming, 11.5 s",
        "samples": "120 of 240 solved",
        "validation set": "30 of 30 solved",
        "outcomes": "CONVERGED 147, PROBLEM_RAISED 2, MAX_ITERATIONS 1",
        "solvers": "2, 24 solves/s",
        "buffer": "237 of 240 frames (99 %), 157 not drawn yet",
        "training": f"batch 25 of 80, 5 batches/s, loss {0.9 * 0.96**20 + 0.01:.3g}",
        "validation": f"relative L2 {100 * (0.025 + 0.4 * 0.95**20):.0f} % (best 17 %)",
        # 4.5 s of steps and draws and 0.125 s of evaluation in 5 s; three blocks of 0.5 s by two solvers
        "bottleneck": "learner, busy 92 % of the time (solvers 15 %, data-set writer 14 %)",
        "warning": "Ray spilled 3 MiB to disk: lower run.blocks_in_flight",
        "time left": watched.state.rows(clock.t)[-1][1],
    }
    assert watched.state.rows(clock.t)[-1][1].startswith("about 11 s, until ")
    assert not watched.look()


def test_one_line_for_a_log_holds_the_same(fake):
    clock = Clock(T0 + 9.0)
    fake.begin()
    fake.produce(range(2))
    watched = watch.Watch(fake.folder, clock)
    watched.look()
    line = watched.line()
    assert line.startswith("run: darcy-test: streaming, 9 s; samples: 80 of 240 solved; solvers: 1, 32 solves/s")
    assert "\n" not in line


def test_stages_that_all_wait_are_no_bottleneck(fake):
    clock = Clock(T0 + 9.0)
    fake.begin()
    fake.produce(range(2), block_s=0.125)
    assert rows(watch.Watch(fake.folder, clock))["bottleneck"] == (
        "none: all wait more than they work (solvers 10 %, data-set writer 0 %, learner 0 %)"
    )


def test_speeds_are_of_the_recent_past_and_of_enough_blocks():
    state = RunState({"samples": 10_000})
    state.take({"event": "run_started", "t": 0.0, "solvers": 1})
    block = {"event": "block_stored", "split": "train", "records": {"outcome": ["CONVERGED"] * 10}, "seconds": 1.0}
    state.take({"event": "block_requested", "t": 0.0, "split": "train", "chunk": 0})
    for chunk in range(100):  # ten a second, then one every twenty seconds
        state.take(block | {"chunk": chunk, "t": 0.1 * (chunk + 1)})
    assert "100 solves/s" in dict(state.rows(10.0))["solvers"]
    for chunk in range(100, 120):
        state.take(block | {"chunk": chunk, "t": 10.0 + 20.0 * (chunk - 99)})
    assert "0.5 solves/s" in dict(state.rows(410.0))["solvers"]
    assert "0.4 solves/s" in dict(state.rows(450.0))["solvers"], "the time since the last block counts"
    for chunk in range(120, 130):
        state.take(block | {"chunk": chunk, "t": 450.0 + chunk})
    assert len(state._window._marks) < 30


def test_what_was_lost_and_who_is_away_is_told(fake):
    fake.begin(solvers=3)
    fake.produce(range(1))
    fake.event("solver_lost", 8.0, solver="solver-1", reason="killed", sample=None)
    fake.event("learner_lost", 8.0, reason="killed")
    fake.event("solver_lost", 8.1, solver="solver-2", reason="killed", sample=None)
    fake.event("solver_ready", 8.2, solver="solver-1")
    found = rows(watch.Watch(fake.folder, Clock(T0 + 9)))
    assert found["lost"] == "2 solvers, 1 learner"
    assert found["solvers"].startswith("2 of 3 there, ")


def test_a_learner_that_goes_back_to_its_checkpoint_does_not_go_at_negative_speed(fake):
    fake.begin()
    fake.produce(range(2))
    fake.train(0, 40)
    watched = watch.Watch(fake.folder, Clock(T0 + 20))
    rows(watched)
    fake.event("learner_lost", 18.0, reason="killed")
    fake.train(20, 40, begin_s=19.0)
    assert ", 4 batches/s" in rows(watched)["training"]


def test_a_resumed_run_is_its_next_attempt_and_counts_no_block_twice(fake):
    fake.begin()
    fake.validation_set()
    fake.produce(range(2))
    fake.event("run_finished", 9.0, status="stopped", reason="SIGTERM")
    watched = watch.Watch(fake.folder, Clock(T0 + 100))
    assert watched.look()
    assert dict(watched.rows())["run"] == "darcy-test: stopped (SIGTERM)"
    fake.begin(attempt=2, at_s=90.0)
    fake.produce(range(1, 3))
    assert not watched.look()
    found = rows(watched)
    assert found["run"] == "darcy-test: streaming, attempt 2, 10 s"
    assert found["samples"] == "120 of 240 solved"


def test_phases_follow_the_journal(fake):
    watched = watch.Watch(fake.folder, Clock(T0 + 30))
    assert rows(watched)["run"] == "darcy-test: waiting for it to begin"
    fake.begin()
    assert "starting" in rows(watched)["run"]
    fake.validation_set()
    fake.produce(range(3))
    assert "streaming" in rows(watched)["run"]
    fake.event("production_ended", 12.0)
    found = rows(watched)
    assert "training on" in found["run"]
    assert "solvers" not in found
    fake.event("stop_requested", 12.5, reason="SIGTERM")
    assert "stopping" in rows(watched)["run"]


def test_where_training_is_over_only_solving_is_waited_for(fake):
    fake.begin()
    fake.produce(range(3))
    fake.train(0, 20, begin_s=6.5)
    fake.event("training_ended", 11.5, batches=20)
    watched = watch.Watch(fake.folder, Clock(T0 + 11.5))
    found = rows(watched)
    assert "solving on" in found["run"]
    assert found["time left"].startswith("about 5 s")  # 120 samples at 24 a second
    assert "batches/s" not in found["training"]


def test_control_characters_of_a_strange_run_never_reach_the_terminal(tmp_path):
    fake = FakeRun(tmp_path / "run", {"name": "evil\x1b[2J"})
    fake.begin()
    fake.event("run_finished", 9.0, status="failed", reason="\x1b]0;title\x07")
    watched = watch.Watch(fake.folder, Clock(T0 + 9))
    assert not re.search(r"[\x00-\x1f]", "".join(value for _, value in (watched.look(), watched.rows())[1]))
    fake.close()


def test_a_run_that_goes_silent_is_told(fake):
    fake.begin()
    watched = watch.Watch(fake.folder, Clock(T0 + 30))
    assert "silent" not in rows(watched), "actors take a while to start"
    fake.produce(range(1))
    assert rows(watched)["silent"] == "nothing was heard of the run for 22.5 s"


# -- when it ends ------------------------------------------------------------------------------------------------------


def test_it_ends_with_the_run(fake):
    watched = watch.Watch(fake.folder, Clock(T0 + 30))
    assert not watched.look(), "it has not begun"
    fake.complete()
    assert watched.look()
    assert dict(watched.rows())["run"] == "darcy-test: complete"


def test_a_run_whose_process_was_killed_is_interrupted_at_once_on_its_own_machine(fake):
    fake.begin()
    fake.produce(range(1))
    watched = watch.Watch(fake.folder, Clock(T0 + 9))
    assert not watched.look()
    fake.close()  # the kernel frees the lock
    assert watched.look()
    assert dict(watched.rows())["run"] == "darcy-test: interrupted (its process ended without a word)"


def test_a_run_of_another_machine_is_waited_for_as_long_as_it_is_not_silent_for_minutes(fake):
    Submission("process", "13", host="elsewhere").write(fake.folder)
    fake.begin()
    fake.produce(range(1))
    fake.close()  # as if its locks could not be seen from here
    clock = Clock(T0 + 9)
    watched = watch.Watch(fake.folder, clock)
    assert not watched.look()
    clock.t += watch.PATIENCE_S - 10
    assert not watched.look()
    clock.t += 20
    assert watched.look()


def test_a_fast_clock_alone_does_not_end_it(fake):
    Submission("slurm", "13").write(fake.folder)
    fake.begin()
    fake.close()
    clock = Clock(T0 + 7 * watch.PATIENCE_S)
    watched = watch.Watch(fake.folder, clock)
    assert not watched.look()
    clock.t += watch.FEW_LOOKS_S + 1
    assert watched.look()


def test_a_file_system_without_locks_is_no_dead_run(fake, monkeypatch):
    Submission("slurm", "13").write(fake.folder)
    fake.begin()

    def refuse(path):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(watch, "is_being_written", refuse)
    assert not watch.Watch(fake.folder, Clock(T0 + 9)).look()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is no run folder: it has no study\.json; start one with `forebay run`"):
        watch.watch(tmp_path)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stop_watch(monkeypatch):
    """Time passes at once; what `step` does happens meanwhile."""

    class Sleeper:
        def __init__(self):
            self.slept = []
            self.step = lambda: None

        def __call__(self, seconds):
            self.slept.append(seconds)
            self.step()

    sleeper = Sleeper()
    monkeypatch.setattr(watch.time, "sleep", sleeper)
    return sleeper


def status(folder):
    cli.app(["status", str(folder), "--watch"], result_action="return_value")


def test_without_a_terminal_there_are_plain_lines_and_the_summary_at_the_end(fake, stop_watch, capsys):
    fake.begin()
    fake.validation_set()
    stop_watch.step = lambda: fake.complete() if len(stop_watch.slept) == 3 else None
    status(fake.folder)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("run: darcy-test: validation")
    assert "\x1b" not in first
    assert rest[0].split() == ["run", "darcy-test:", "complete"], "one line in ten seconds, then the summary"
    assert any(line.startswith("bottleneck") for line in rest)
    assert stop_watch.slept == [1.0] * 3


def test_ctrl_c_leaves_quietly(fake, stop_watch, capsys):
    fake.begin()

    def interrupt():
        raise KeyboardInterrupt

    stop_watch.step = interrupt
    status(fake.folder)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_on_a_terminal_the_table_is_drawn_anew_every_second(fake, stop_watch, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(watch, "make_console", lambda: console)
    monkeypatch.setattr(watch.sys.stdout, "isatty", lambda: True, raising=False)
    fake.begin()
    fake.produce(range(1))

    def step():
        match len(stop_watch.slept):
            case 1:
                fake.measure("train", 9.0, **training_line(5))
                fake.measure("validation", 9.0, **validation_line(5))
            case 2:
                fake.event("run_finished", 9.5, status="complete", reason="")

    stop_watch.step = step
    status(fake.folder)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "samples         40 of 240 solved" in text
    assert "batch 5 of 80" in text
    assert text.index("40 of 240") < text.index("batch 5 of 80") < text.index("darcy-test: complete")


def test_a_journal_line_with_a_loss_that_is_no_number_is_shown_as_unknown(fake):
    fake.begin()
    fake.produce(range(1))
    fake.measure("train", 9.0, **training_line(5) | {"loss": "nan"})
    assert "loss unknown" in rows(watch.Watch(fake.folder, Clock(T0 + 9)))["training"]
