"""The batch scripts: what they ask for, what cannot get into them, and what Slurm's does when signals come."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from running import POLL

from forebay.cluster.batch_script import batch_script
from forebay.cluster.site import ClusterOptions
from forebay.pipeline.errors import RunError

OPTIONS = ClusterOptions(
    nodes=2,
    cores_per_node=8,
    gpus_per_node=0,
    memory_gib=None,
    time_s=90061,
    partition=None,
    account=None,
    qos=None,
    signal_s=120,
    requeues=3,
    setup=(),
    extra=(),
    python=None,
    address="",
    tmp="/tmp",
    join_s=60,
)
STORE = 300_000_000


def script_of(system="slurm", *, run=Path("/runs/r"), begin=("run", "/s.toml"), options=OPTIONS, python="/bin/python3"):
    return batch_script(system, "study", run, begin, options, python=python, store=STORE)


@pytest.mark.parametrize("system", ["slurm", "pbs", "lsf"])
@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize("nodes", [1, 3])
def test_every_script_is_valid_bash(system, gpus, nodes):
    options = replace(OPTIONS, nodes=nodes, gpus_per_node=gpus, memory_gib=4.0, partition="p", account="a", qos="q")
    text = script_of(system, options=options)
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert text.startswith("#!/bin/bash\n#")
    assert "set -euo pipefail" in text
    assert "ray stop" not in text
    assert "{" not in text.split("set -euo")[0].replace("${", "")


def test_the_slurm_script_asks_for_what_the_options_say():
    options = replace(
        OPTIONS, gpus_per_node=2, memory_gib=1.5, partition="gpu", account="me", qos="high", extra=("--constraint=ib",)
    )
    lines = script_of(options=options).splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert asked == {
        "--job-name=study",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--mem=1536M",
        "--gres=gpu:2",
        "--time=1-01:01:01",
        "--partition=gpu",
        "--account=me",
        "--qos=high",
        "--signal=B:USR1@120",
        "--requeue",
        "--open-mode=append",
        "--output=/runs/r/logs/slurm-%j.out",
        "--constraint=ib",
    }
    text = "\n".join(lines)
    assert "--cpus 8 --gpus 2" in text
    store = int(1.5 * 2**30 * 0.3) if STORE > 1.5 * 2**30 * 0.3 else STORE
    assert f"--object-store-bytes {store} --memory-bytes {int(1.5 * 2**30) - store}" in text


@pytest.mark.parametrize("system", ["pbs", "lsf"])
def test_scripts_that_have_never_run_say_so(system):
    assert "# NOT RUN" in script_of(system)


def test_a_word_of_the_command_line_stays_one_word(tmp_path):
    hostile = ["run", "/s tudy.toml", "--set", "a=$(touch x)`touch x`;touch x'\"\n&touch x"]
    text = script_of(begin=hostile)
    assignment = text[text.index("begin=(") : text.index(")  # a run that has begun")] + ")"
    printed = subprocess.run(
        ["bash", "-c", f'{assignment}\nprintf "%s\\0" "${{begin[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert printed.stdout.split("\0")[:-1] == hostile
    assert list(tmp_path.iterdir()) == []


def test_an_address_command_of_the_site_reaches_the_node_as_one_word():
    text = script_of(options=replace(OPTIONS, address="ip -4 addr show ib0 | awk '{print $2}'"))
    assert text.count("""--address-command 'ip -4 addr show ib0 | awk '"'"'{print $2}'"'"''""") == 2


@pytest.mark.parametrize("run", ["/runs/a b", "/runs/%j", "/runs/a\n#SBATCH --uid=0", "/runs/$(id)", "relative"])
def test_a_path_that_a_batch_system_would_interpret_is_refused(run):
    with pytest.raises(RunError, match=r"has a character that batch systems interpret.*--folder names the run folder"):
        script_of(run=Path(run))


@pytest.mark.parametrize("python", ["/env/a b/bin/python", "/env/$(id)/python", "/env/p\n#SBATCH --uid=0", "python"])
def test_a_python_that_a_shell_would_interpret_is_refused(python):
    with pytest.raises(RunError, match="has a character that batch systems interpret"):
        script_of(python=python)


# -- the script at work, with stand-ins for Slurm and Python -----------------------------------------------------------

FAKES = {
    # A node lives until `scancel` ends the job's steps.
    "srun": """#!/bin/bash
cat > "$FAKE/token-$$"
echo "$*" >> "$FAKE/srun"
echo "$$" >> "$FAKE/steps"
exec sleep 60
""",
    "scancel": '#!/bin/bash\necho "$*" >> "$FAKE/scancel"\nxargs kill -TERM < "$FAKE/steps"\n',
    "scontrol": '#!/bin/bash\necho "$*" >> "$FAKE/scontrol"\n',
    "python3": """#!/bin/bash
case "$*" in
  *ray_node*) echo 127.0.0.1:7 ;;
  *)
    echo "$RAY_ADDRESS $FOREBAY_NODES $*" >> "$FAKE/driver"
    if [[ -e $FAKE/sudden ]]; then touch "$FAKE/began"; exec sleep 60; fi
    trap 'trap "" TERM; touch "$FAKE/asked"; sleep 0.3; echo saved >> "$FAKE/driver"; exit 0' TERM
    touch "$FAKE/began"
    for i in {1..600}; do [[ -e $FAKE/exit ]] && exit "$(cat "$FAKE/exit")"; sleep 0.05; done ;;
esac
""",
}


@pytest.fixture
def job(tmp_path):
    """The script, started as Slurm would, in a folder of stand-ins."""
    fake, run, nodes, programs = tmp_path / "told", tmp_path / "run", tmp_path / "t", tmp_path / "bin"
    for folder in (fake, run / "logs", nodes, programs):
        folder.mkdir(parents=True)
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    script = tmp_path / "job.sh"
    options = replace(OPTIONS, tmp=str(nodes))
    script.write_text(batch_script("slurm", "s", run, ["run", "x"], options, python=str(programs / "python3"), store=7))
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FAKE": str(fake),
        "SLURM_JOB_ID": "13",
        "SLURMD_NODENAME": "a",
        "RAY_AUTH_TOKEN": "leaked",
    }
    started = []

    def start(**more):
        process = subprocess.Popen(["bash", str(script)], env=environment | more, stderr=subprocess.PIPE, text=True)
        started.append(process)
        wait(lambda: (fake / "began").exists() and read(fake / "steps").count("\n") == 2, process)
        return process

    start.fake, start.run, start.nodes = fake, run, nodes
    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait(condition, process):
    for _ in range(400):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        POLL.wait(0.025)
    raise AssertionError("the driver never began")


def read(path):
    return path.read_text() if path.exists() else ""


def test_a_run_that_ends_gives_its_exit_status_and_leaves_nothing(job):
    process = job()
    tokens = {read(path) for path in job.fake.glob("token-*")}
    (folder,) = job.nodes.iterdir()
    assert tokens == {read(folder / "token")}
    token = tokens.pop()
    assert len(token) == 64
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (job.fake / "exit").write_text("3")
    assert process.wait(20) == 3
    assert list(job.nodes.iterdir()) == []
    assert read(job.fake / "scancel") == "--signal=TERM 13\n"
    assert read(job.fake / "scontrol") == ""
    assert read(job.fake / "driver") == "127.0.0.1:7 2 -P -m forebay.cluster.cli run x\n"
    for pid in read(job.fake / "steps").split():
        assert not Path(f"/proc/{pid}").exists()
    assert token not in read(job.fake / "srun"), "the token is on a command line"


def test_near_the_time_limit_the_checkpoint_is_saved_and_the_job_queued_again(job):
    process = job()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0, process.stderr.read()
    assert "saved" in read(job.fake / "driver")
    assert read(job.fake / "scontrol") == "requeue 13\n"
    assert list(job.nodes.iterdir()) == []


def test_a_job_that_was_queued_again_resumes(job):
    (job.run / "study.json").touch()
    process = job(SLURM_RESTART_COUNT="1")
    (job.fake / "exit").write_text("0")
    assert process.wait(20) == 0
    assert read(job.fake / "driver").endswith(f"forebay.cluster.cli resume {job.run}\n")


def test_a_stop_by_the_user_saves_the_checkpoint_and_ends_the_job(job):
    process = job()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "saved" in read(job.fake / "driver")
    assert read(job.fake / "scontrol") == ""


def test_a_stop_goes_before_a_time_limit(job):
    process = job()
    process.send_signal(signal.SIGUSR1)
    wait(lambda: (job.fake / "asked").exists(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert read(job.fake / "scontrol") == ""


def test_a_run_that_had_not_begun_when_the_limit_came_is_queued_again(job):
    (job.fake / "sudden").touch()
    process = job()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    assert read(job.fake / "scontrol") == "requeue 13\n"


def test_a_run_that_was_complete_by_then_is_not_queued_again(job):
    (job.run / "summary.json").write_text('{\n  "status": "complete"\n}')
    process = job()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    assert read(job.fake / "scontrol") == ""


def test_a_job_is_queued_again_only_so_often(job):
    process = job(SLURM_RESTART_COUNT="3")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    assert read(job.fake / "scontrol") == ""
