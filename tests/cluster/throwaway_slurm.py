"""A Slurm of its own on this machine: one controller and two nodes, on loopback, without systemd, gone after the tests.

It needs root, and Debian's packages, which are installed where they are missing and can be had.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
NODES = ("n0", "n1")
CONFIGURATION = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for as long as a credential lives, two minutes unless told.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=30
KillWait=10
MinJobAge=600
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class UnavailableError(Exception):
    """Why there can be no Slurm here."""


def install() -> None:
    """Have Slurm's programs. Raises :class:`UnavailableError` where that is not possible."""
    if os.geteuid() != 0:
        raise UnavailableError("a Slurm of one's own needs root")
    if all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "srun")):
        return
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"there is no apt-get to install {' '.join(PACKAGES)}")
    done = subprocess.run(
        ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES],
        capture_output=True,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode != 0:
        raise UnavailableError(f"apt-get cannot install Slurm: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


class Cluster:
    """Two nodes, ``n0`` and ``n1``, of ``cpus`` processors each, and two partitions, of which ``high`` preempts."""

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder, self.cpus = folder, cpus
        self.environment: Mapping[str, str] = {**_without_slurm(), "SLURM_CONF": str(folder / "slurm.conf")}
        self._ports = _free_ports(1 + len(NODES))
        self._munge: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start everything and wait until both nodes take jobs."""
        self.folder.chmod(0o755)
        for name in ("munge", "state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self._configure()
        munge = self.folder / "munge"
        self._munge = subprocess.Popen(
            [
                # Temporary folders are closed to others, which munged takes for a mistake.
                *(
                    "munged",
                    "--foreground",
                    "--force",
                    "--num-threads=2",
                    f"--socket={munge}/socket",
                    f"--key-file={key}",
                ),
                *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
            ],
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: (munge / "socket").exists(), 10, "munged does not listen")
        self.run("slurmctld", "-i")
        for node in NODES:
            self.start_node(node)
        wait_for(self.ready, 30, f"the nodes do not come up: see {self.folder}")

    def ready(self) -> bool:
        """Whether both nodes take jobs."""
        states = self.run("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%T", check=False).split()
        return len(states) == len(NODES) and set(states) <= {"idle", "mixed", "allocated"}

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self.run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon, as a crash would; what runs under it goes on."""
        pid = int((self.folder / f"slurmd-{node}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not running(pid), 10, f"slurmd of {node} does not die")

    def down(self) -> None:
        """Cancel every job and stop what :meth:`up` has started."""
        jobs = self.run("squeue", "--noheader", "--format=%A", check=False).split()
        if jobs:
            self.run("scancel", *jobs, check=False)
            wait_for(lambda: not self.run("squeue", "--noheader", check=False).strip(), 30, "jobs do not end")
        for path in [*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid"]:
            if path.is_file():
                _end(int(path.read_text()))
        if self._munge is not None:
            self._munge.terminate()
            self._munge.wait(10)

    def run(self, *command: str, check: bool = True, cwd: Path | None = None, **environment: str) -> str:
        """What a program prints, with this cluster's configuration."""
        done = subprocess.run(
            command, capture_output=True, text=True, env={**self.environment, **environment}, cwd=cwd, timeout=600
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """A job's state as the controller has it: PENDING, RUNNING, COMPLETED …"""
        return self.run("squeue", "--noheader", "--states=all", "--array", f"--jobs={job}", "--format=%T").strip()

    def wait(self, job: str, *states: str, seconds: float = 900) -> str:
        """Wait until a job is in one of ``states``; which."""
        wait_for(lambda: self.state(job) in states, seconds, lambda: f"job {job} stays {self.state(job)}, not {states}")
        return self.state(job)

    def restarts(self, job: str) -> int:
        """How often a job has been queued again."""
        said = self.run("scontrol", "show", "job", job)
        return int(said.partition("Restarts=")[2].split()[0])

    def processes(self, job: str, words: str) -> list[int]:
        """The ids of the processes that Slurm has started for a job, if ``words`` are in their command line."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            try:
                spoken = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                known = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            mine = f"SLURM_JOB_ID={job}".encode() in known and f"SLURM_CONF={self.folder}/slurm.conf".encode() in known
            if words in spoken and mine and _is_task(folder):
                found.append(int(folder.name))
        return sorted(found)

    def _configure(self) -> None:
        port, *others = self._ports
        host = socket.gethostname().partition(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs={self.cpus} RealMemory=4000"
            for node, one in zip(NODES, others, strict=True)
        ]
        text = CONFIGURATION.format(host=host, port=port, folder=self.folder)
        head, partition, rest = text.partition("PartitionName")
        (self.folder / "slurm.conf").write_text(head + "\n".join(lines) + "\n" + partition + rest)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")


def wait_for(condition: Callable[[], bool], seconds: float, otherwise: str | Callable[[], str]) -> None:
    """Wait until ``condition()`` holds; fail with ``otherwise`` where it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise())
        time.sleep(0.2)


def _is_task(folder: Path) -> bool:
    """Whether a process is a batch shell or a rank, and none that these have started."""
    try:
        parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        return Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd")
    except OSError:
        return False


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _end(pid: int) -> None:
    if running(pid):
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 10
        while running(pid) and time.monotonic() < until:
            time.sleep(0.1)
        if running(pid):
            os.kill(pid, signal.SIGKILL)


def _without_slurm() -> dict[str, str]:
    """This environment without what another Slurm, or a surrounding launcher, has put into it."""
    told = ("SLURM_", "SBATCH_", "SQUEUE_", "ALIGNMENT_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(told)}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
