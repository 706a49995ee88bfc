"""Where a run is, and how it is asked to stop: a process of this machine, a job of Slurm, a job of a Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import is_alive

from forebay.cluster import jobs, whereabouts
from forebay.cluster.known import remember
from forebay.cluster.slurm import GONE, job_state, sbatch, stop_job
from forebay.cluster.submission import Submission, birth, read_submission, this_attempt
from forebay.cluster.submit import Request, check_resumable, choose
from forebay.cluster.whereabouts import state_of, stop, tell_whereabouts
from forebay.pipeline.errors import RunError, StudyError

NO_SYSTEM = {"slurm": False, "pbs": False, "lsf": False}


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def of_process(process):
    return Submission("process", str(process.pid), host=this_attempt({}).host, born=birth(process.pid))


def test_what_a_run_was_started_as_is_kept_and_read_again(tmp_path):
    for submission in (this_attempt({}), Submission("slurm", "13"), Submission("ray", "j", address="http://a:1")):
        submission.write(tmp_path)
        assert read_submission(tmp_path) == submission
    assert [path.name for path in tmp_path.iterdir()] == ["submission.json"]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("slurm:17", Submission("slurm", "17")),
        ("ray:job-1@http://h:8265", Submission("ray", "job-1", address="http://h:8265")),
    ],
)
def test_the_driver_of_a_job_says_which_job(variable, expected):
    assert this_attempt({"FOREBAY_SUBMISSION": variable}) == expected


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"kind": "process", "job": "1", "more": 2}', '{"kind": "process", "job": 1}']
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "submission.json").write_text(text)
    with pytest.raises(RunError, match=r"submission\.json is damaged; end the run's job by hand"):
        read_submission(tmp_path)


def test_a_file_of_a_later_version_is_told(tmp_path):
    (tmp_path / "submission.json").write_text('{"kind": "pbs", "job": "1"}')
    with pytest.raises(RunError, match="has kind = 'pbs', which this version does not know"):
        read_submission(tmp_path)


def test_a_process_is_asked_to_stop_and_waited_for(tmp_path, sleeper, capsys):
    of_process(sleeper).write(tmp_path)
    assert state_of(read_submission(tmp_path)) == "running"
    assert stop(tmp_path) == 0
    assert "was asked to stop" in capsys.readouterr().out
    assert not is_alive(sleeper.pid)
    assert stop(tmp_path) == 0
    assert "has ended already; nothing to stop" in capsys.readouterr().out


def test_another_process_with_the_same_id_is_left_alone(tmp_path, sleeper, capsys):
    earlier = Submission("process", str(sleeper.pid), host=this_attempt({}).host, born="boot:1")
    earlier.write(tmp_path)
    assert stop(tmp_path) == 0
    assert "has ended already" in capsys.readouterr().out
    assert is_alive(sleeper.pid)


def test_a_process_of_another_machine_is_not_touched_from_here(tmp_path, sleeper):
    Submission("process", str(sleeper.pid), host="elsewhere", born=birth(sleeper.pid)).write(tmp_path)
    with pytest.raises(RunError, match=rf"process {sleeper.pid} on elsewhere, and this is .*; run this command there"):
        stop(tmp_path)
    assert is_alive(sleeper.pid)


@pytest.mark.parametrize("job", ["-1", "0", "-17", "1.5", "abc"])
@pytest.mark.parametrize("born", ["", "boot:1"])
def test_what_is_no_process_id_is_never_signalled(tmp_path, monkeypatch, job, born):
    sent = []
    monkeypatch.setattr(whereabouts.os, "kill", lambda *words: sent.append(words))
    monkeypatch.setattr(whereabouts, "birth", lambda pid: born)
    Submission("process", job, host=this_attempt({}).host, born=born).write(tmp_path)
    if born:
        with pytest.raises(RunError, match=rf"'{job}' is no process id; look at submission\.json"):
            stop(tmp_path)
    else:
        assert stop(tmp_path) == 0  # it never was one that could be told from others
    assert not sent


def test_a_process_that_does_not_end_is_told_about(tmp_path, sleeper, monkeypatch, capsys):
    of_process(sleeper).write(tmp_path)
    monkeypatch.setattr(whereabouts, "WAIT_S", 0.0)
    monkeypatch.setattr(whereabouts, "_ask", lambda submission: None)
    assert stop(tmp_path) == 1
    assert f"has not ended after 0 s; look again with: forebay status {tmp_path}" in capsys.readouterr().out
    assert stop(tmp_path, wait=False) == 0


def test_a_folder_that_says_nothing_is_named(tmp_path):
    with pytest.raises(RunError, match=r"has no submission\.json; is it a run folder\?"):
        stop(tmp_path)
    assert not tell_whereabouts(tmp_path)


# -- Slurm, with stand-ins for its commands ----------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands that note what they are told; `squeue` says what the file `state` says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {
        "sbatch": 'echo "71;far"',
        "scancel": "true",
        "squeue": '[[ -e "$0.fails" ]] && { cat "$0.fails" >&2; exit 1; }; cat "$0.state"',
    }
    for name, answer in answers.items():
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/told"\n{answer}\n')
        (folder / name).chmod(0o755)
    (folder / "squeue.state").write_text("RUNNING\n")
    (folder / "told").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def told(slurm):
    return (slurm / "told").read_text().splitlines()


def test_a_script_is_queued_and_the_job_known_by_id_and_cluster(slurm):
    assert sbatch(Path("/x/job.sh")) == "71@far"
    assert told(slurm) == ["sbatch --parsable /x/job.sh"]


def test_a_running_job_is_signalled_and_not_cancelled(slurm):
    assert stop_job("71@far") == "RUNNING"
    assert told(slurm) == [
        "squeue --noheader --format=%T --clusters=far --jobs=71",
        "scancel --signal=TERM --batch --clusters=far 71",
    ]


def test_a_waiting_job_is_taken_from_the_queue(slurm):
    (slurm / "squeue.state").write_text("PENDING\n")
    assert stop_job("71") == "PENDING"
    assert told(slurm)[-1] == "scancel 71"


def test_a_job_that_slurm_has_forgotten_has_ended(slurm, tmp_path, capsys):
    (slurm / "squeue.fails").write_text("slurm_load_jobs error: Invalid job id specified\n")
    assert job_state("71") == GONE
    Submission("slurm", "71").write(tmp_path)
    assert stop(tmp_path) == 0
    assert "Slurm job 71 has ended already" in capsys.readouterr().out


def test_slurms_own_words_are_passed_on(slurm, tmp_path, capsys):
    (slurm / "squeue.fails").write_text("Unable to contact slurm controller\n")
    with pytest.raises(RunError, match="squeue: Unable to contact slurm controller"):
        job_state("71")
    Submission("slurm", "71").write(tmp_path)
    assert tell_whereabouts(tmp_path) is True
    assert "Slurm job 71: squeue: Unable to contact" in capsys.readouterr().out


@pytest.mark.parametrize("job", ["71; id", "--all", "", "$(id)"])
def test_a_job_id_from_a_strangers_folder_is_checked(slurm, job):
    with pytest.raises(RunError, match="is no job id of Slurm"):
        job_state(job)
    with pytest.raises(RunError, match="is no job id of Slurm"):
        stop_job(job)
    assert told(slurm) == []


def test_a_machine_without_slurm_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match="sbatch is not on PATH; go to a login node"):
        sbatch(Path("job.sh"))


# -- a Ray -------------------------------------------------------------------------------------------------------------


def test_a_ray_that_only_a_run_folder_names_is_not_sent_a_token(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(jobs, "job_state", lambda address, job: asked.append(address) or "RUNNING")
    monkeypatch.setattr(jobs, "last_lines", lambda address, job, count: ["solved 3"])
    Submission("ray", "j", address="http://h:8265", folder="/far").write(tmp_path)
    with pytest.raises(RunError, match=r"http://h:8265, to which you have not submitted from here.*known_rays"):
        stop(tmp_path)
    assert tell_whereabouts(tmp_path) is True
    assert asked == []
    remember("http://h:8265")
    remember("http://h:8265")
    assert (tmp_path / ".config" / "forebay" / "known_rays").read_text() == "http://h:8265\n"
    capsys.readouterr()
    assert tell_whereabouts(tmp_path) is True
    assert asked == ["http://h:8265"]
    said = capsys.readouterr().out
    assert said == "Ray job j at http://h:8265: RUNNING\nrun folder on the cluster: /far\nsolved 3\n"


# -- the request -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ray", "systems", "print_only", "include", "message"),
    [
        (None, {}, False, (), "submit where"),
        ("a:1", {"slurm": True}, False, (), "submit where"),
        (None, {"slurm": True, "pbs": True}, False, (), "submit where"),
        ("a:1", {}, True, (), "--print shows a batch script, and --ray sends none"),
        (None, {"slurm": True}, False, (Path("x"),), "--include is for --ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(ray, systems, print_only, include, message):
    with pytest.raises(StudyError, match=message):
        choose(
            Request(Path("s.toml"), include=include),
            ray=ray,
            systems=NO_SYSTEM | systems,
            print_only=print_only,
            follow=True,
        )


def test_a_run_that_goes_on_keeps_its_options(tmp_path):
    with pytest.raises(StudyError, match="goes on as it began: leave --set and --folder out"):
        check_resumable(Request(tmp_path, overrides=("samples=3",)))
    with pytest.raises(StudyError, match="goes on as it began"):
        check_resumable(Request(tmp_path, folder=tmp_path))


def test_a_run_that_is_going_on_is_not_submitted_again(tmp_path, sleeper):
    of_process(sleeper).write(tmp_path)
    with pytest.raises(RunError, match=rf"process {sleeper.pid} .* is running and works on .*; forebay stop"):
        check_resumable(Request(tmp_path))
    sleeper.kill()
    sleeper.wait()
    check_resumable(Request(tmp_path))


@pytest.mark.parametrize(
    "state", ["COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "gone", "STOPPED"]
)
def test_a_job_that_has_ended_is_not_asked_again(tmp_path, monkeypatch, capsys, state):
    Submission("slurm", "13").write(tmp_path)
    monkeypatch.setattr(whereabouts, "state_of", lambda submission: state)
    monkeypatch.setattr(whereabouts, "_ask", lambda submission: pytest.fail("asked"))
    assert stop(tmp_path) == 0
    assert "Slurm job 13 has ended already; nothing to stop" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["ray://h:10001", "auto", "", "ftp://h"])
def test_an_address_that_is_no_dashboard_is_refused(address):
    with pytest.raises(RunError, match="is no dashboard; give its address"):
        jobs.dashboard_url(address)


@pytest.mark.parametrize("who", ["me:secret", "secret", ":secret"])
def test_an_address_with_a_user_or_a_password_is_refused_without_repeating_it(who):
    with pytest.raises(RunError, match="leave user and password out") as caught:
        jobs.dashboard_url(f"http://{who}@h:8265")
    assert "secret" not in str(caught.value)


def test_a_dashboard_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")  # not what was asked for
    with pytest.raises(RunError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9.*RAY_AUTH_TOKEN_PATH"):
        jobs.job_state("http://127.0.0.1:9", "j")
    assert os.environ["RAY_ADDRESS"] == "10.1.2.3:6379"


class Info:
    def __init__(self, status, code=None, message="why"):
        self.status, self.driver_exit_code, self.message = status, code, message


@pytest.mark.parametrize(
    ("info", "status"),
    [(Info("SUCCEEDED", 0), 0), (Info("STOPPED"), 0), (Info("FAILED", 2), 2), (Info("FAILED"), 1)],
)
def test_the_exit_status_of_a_job_is_that_of_its_run(info, status, capsys):
    assert jobs.exit_status(info) == status
    assert ("why" in capsys.readouterr().err) == (status == 1)


def test_ctrl_c_ends_the_following_alone(monkeypatch, capsys):
    class Client:
        async def tail_job_logs(self, job):
            yield "solved 3\n"
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_client", lambda address: Client())
    assert jobs.follow("http://h:1", "j", "forebay stop RUN") == 130
    caught = capsys.readouterr()
    assert caught.out == "solved 3\n"
    assert "no longer followed; the job goes on: forebay stop RUN" in caught.err


def test_a_lost_connection_says_that_the_job_goes_on(monkeypatch):
    class Client:
        async def tail_job_logs(self, job):
            yield ""
            raise RuntimeError("closed")

    monkeypatch.setattr(jobs, "_client", lambda address: Client())
    with pytest.raises(RunError, match=r"connection to http://h:1 was lost \(closed\); the job goes on: HINT"):
        jobs.follow("http://h:1", "j", "HINT")


def test_what_is_sent_stops_gracefully_and_quotes_every_word(monkeypatch, tmp_path):
    sent = {}

    class Client:
        def submit_job(self, **words):
            sent.update(words)

    monkeypatch.setattr(jobs, "_client", lambda address: Client())
    monkeypatch.setattr(jobs, "project_modules", lambda: [])
    jobs.send("http://h:1", jobs.RayJob("j", ["run", "s.toml", "--set", "a=$(id)"], "/py thon", tmp_path))
    assert sent["entrypoint"] == "exec '/py thon' -P -m forebay.cluster.cli run s.toml --set 'a=$(id)'"
    assert sent["runtime_env"] == {
        "env_vars": {
            "RAY_JOB_STOP_WAIT_TIME_S": "600",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "FOREBAY_SUBMISSION": "ray:j@http://h:1",
        },
        "working_dir": str(tmp_path),
    }
    assert json.dumps(sent["runtime_env"]).count("token") == 0
