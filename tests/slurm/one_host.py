"""A real Slurm of two nodes on one host: munged, slurmctld and two slurmd, without systemd and without cgroups.

By hand:  python tests/slurm/one_host.py up FOLDER    (prints what to export)
          python tests/slurm/one_host.py down FOLDER

Everything is in FOLDER, with ports, key and socket of its own, so that an installed Slurm is not disturbed.  It is
taken down by process id.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2")
DAEMONS = ("slurmd.n1", "slurmd.n2", "slurmctld", "munged")
UP_S = 30.0
DOWN_S = 20.0

CONFIGURATION = """
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again waits until the credential of its last attempt has expired, by default 120 s.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=15
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def install() -> str:
    """Install Debian's packages where programs are missing; why that cannot be done, or nothing."""
    if all(map(_program, PROGRAMS)):
        return "" if os.getuid() == 0 else "slurmd needs root"
    if os.getuid() != 0:
        return "Slurm is not installed, and installing it needs root"
    if shutil.which("apt-get") is None:
        return "Slurm is not installed, and there is no apt-get here"
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-q", *words], env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"apt-get {words[0]} failed: {done.stderr[-500:]}"
    return ""


def environment(folder: Path) -> dict[str, str]:
    """What Slurm's commands need to know."""
    return {"SLURM_CONF": str(folder / "slurm.conf")}


def up(folder: Path) -> None:
    """Start the daemons in an empty folder and wait until both nodes are idle."""
    for name in ("state", "spool/n1", "spool/n2"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=_free_ports(3)))
    try:
        _start(
            folder,
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        )
        _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        _start(folder, "slurmctld", "-f", f"{folder}/slurm.conf")
        for node in NODES:
            _start(folder, "slurmd", "-f", f"{folder}/slurm.conf", "-N", node)
        _wait(lambda: _idle(folder) == len(NODES), "both nodes", folder)
    except BaseException:
        down(folder)
        raise


def down(folder: Path) -> None:
    """End jobs, then the daemons, by the process ids that they wrote down."""
    if (folder / "slurmctld.pid").exists():
        subprocess.run(
            ["scancel", "--full", "--user=root"],
            env=os.environ | environment(folder),
            capture_output=True,
            check=False,
            timeout=30,
        )
        end = time.monotonic() + DOWN_S
        while _slurm(folder, "squeue", "--noheader").strip() and time.monotonic() < end:
            time.sleep(0.5)
    for name in DAEMONS:
        _end(folder / f"{name}.pid")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _start(folder: Path, program: str, *words: str) -> None:
    path = _program(program)
    assert path is not None, program
    # A log instead of pipes, which the daemon would keep open for ever.
    with (folder / f"{program}.start").open("a") as log:
        subprocess.run(
            [path, *words], env=os.environ | environment(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            check=True, timeout=UP_S,
        )  # fmt: skip


def _slurm(folder: Path, *words: str) -> str:
    return subprocess.run(
        words, env=os.environ | environment(folder), capture_output=True, text=True, check=False, timeout=30
    ).stdout


def _idle(folder: Path) -> int:
    return _slurm(folder, "sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait(condition, what: str, folder: Path) -> None:
    end = time.monotonic() + UP_S
    while not condition():
        if time.monotonic() > end:
            logs = "".join(path.read_text(errors="replace")[-1500:] for path in folder.glob("*.log"))
            raise RuntimeError(f"{what} not up within {UP_S:g} s: {logs}")
        time.sleep(0.2)


def _end(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return
    end = time.monotonic() + DOWN_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)


if __name__ == "__main__":
    verb, place = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "down":
        down(place)
    elif reason := install():
        sys.exit(reason)
    else:
        up(place)
        print("\n".join(f"export {key}={value}" for key, value in environment(place).items()))
