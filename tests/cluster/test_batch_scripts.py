"""What the batch scripts make of an exit code, a signal, an image and an array, with a Slurm that only writes down."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"
SRUN = """#!/bin/bash
# Asked for an address, or for its options, it answers; otherwise it runs the ranks, which end as they were told.
if [[ $* == *--help* ]]; then echo "$STUB_HELP"; exit; fi
if [[ $* == *--overlap* ]]; then echo "srun $*" >>"$STUB/calls"; echo "$STUB_ADDRESS"; exit; fi
printf '%s\\n' "ranks $*" "MASTER_ADDR ${MASTER_ADDR:-none}" "cores $SRUN_CPUS_PER_TASK" >>"$STUB/calls"
if [[ -n ${STUB_SLEEP:-} ]]; then
  trap 'echo "ranks got USR1" >>"$STUB/calls"; [[ -n ${STUB_DEAF:-} ]] || exit 85' USR1
  trap 'exit 143' TERM
  echo $$ >"$STUB/began"
  for _ in $(seq "${STUB_SLEEP}0"); do sleep 0.1; done
fi
exit "$STUB_CODE"
"""
UNREACHABLE = """
# The controller is away for the first calls.
if [[ -s $STUB/away ]]; then
  sed -i 1d "$STUB/away"
  echo "Unable to contact slurm controller (connect failure)" >&2
  exit 1
fi
"""
SQUEUE = f"""#!/bin/bash{UNREACHABLE}
case $* in
  *%T*) echo "$STUB_STATE" ;;
  *%e*) echo "$STUB_END" ;;
  *%k*) cat "$STUB/comment" 2>/dev/null ;;
esac
exit 0
"""
SCONTROL = f"""#!/bin/bash{UNREACHABLE}
echo "scontrol $*" >>"$STUB/calls"
case $* in
  *hostnames*) echo first; echo second ;;
  *Comment=*) last=${{*: -1}}; echo "${{last#Comment=}}" >"$STUB/comment" ;;
  # As Slurm does, with ranks that still run.
  *requeue*) [[ ! -f $STUB/began ]] || kill "$(cat "$STUB/began")" 2>/dev/null ;;
esac
exit 0
"""


class Node:
    """The first node of a job, with Slurm's programs and its variables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in {"srun": SRUN, "squeue": SQUEUE, "scontrol": SCONTROL}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "STUB": str(folder),
            "STUB_CODE": "0",
            "STUB_STATE": "RUNNING",
            "STUB_END": "2099-01-01T00:00:00",
            "STUB_ADDRESS": "10.0.0.7 10.1.0.7",
            "STUB_HELP": "",
            "SLURM_JOB_ID": "12",
            "SLURM_JOB_NODELIST": "n[0-1]",
            "SLURM_SUBMIT_DIR": str(JOBS.parent),
            "SLURM_CPUS_PER_TASK": "3",
        }

    def lose_controller(self, calls: int) -> None:
        """Let so many calls of Slurm's programs from now on find nobody; who waits meanwhile waits for no time."""
        (self.folder / "away").write_text("away\n" * calls)
        (self.folder / "sleep").write_text("#!/bin/bash\n")
        (self.folder / "sleep").chmod(0o755)

    def start(self, script: str, arguments: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        """Begin a batch script, copied elsewhere as Slurm does."""
        spooled = self.folder / "slurm_script"
        spooled.write_text((JOBS / script).read_text())
        (self.folder / "calls").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", str(spooled), *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, arguments: Sequence[str] = (), **environment: str) -> tuple[int, str]:
        """Its exit code, and what it says."""
        job = self.start(script, arguments, **environment)
        said, _ = job.communicate(timeout=60)
        return job.returncode, said

    @property
    def calls(self) -> list[str]:
        """What Slurm's programs were told."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.is_file() else []

    @property
    def requeued(self) -> list[str]:
        """The jobs that were queued again."""
        return [line.split()[-1] for line in self.calls if line.startswith("scontrol requeue")]

    @property
    def ranks(self) -> str:
        """What every rank was to run."""
        (line,) = [line for line in self.calls if line.startswith("ranks ")]
        return line


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(
    ("code", "again", "ends"),
    [
        (0, False, 0),
        (1, False, 1),
        (2, False, 2),
        (85, True, 85),
        # Asked to stop before the program could listen.
        (138, True, 85),
        (143, True, 85),
        # A device that failed, or a rank that noticed that another one is gone.
        (86, True, 85),
        # A rank that was killed, or aborted.
        (137, True, 85),
        (134, True, 85),
        (139, True, 85),
        (130, False, 130),
    ],
)
def test_a_job_is_queued_again_by_how_its_ranks_ended(code: int, again: bool, ends: int, node: Node) -> None:
    assert node.run("stage.sbatch", STUB_CODE=str(code))[0] == ends
    assert node.requeued == (["12"] if again else [])


def test_it_is_queued_again_a_bounded_number_of_times(node: Node) -> None:
    limit = {"STUB_CODE": "85", "ALIGNMENT_REQUEUES": "4"}
    assert node.run("stage.sbatch", SLURM_RESTART_COUNT="3", **limit)[0] == 85
    assert node.requeued == ["12"]
    code, said = node.run("stage.sbatch", SLURM_RESTART_COUNT="4", **limit)
    assert (code, node.requeued) == (85, [])
    assert "it was queued again 4 times, and ALIGNMENT_REQUEUES=4" in said


def test_faults_have_a_bound_of_their_own_that_preemption_does_not_use_up(node: Node) -> None:
    for restarts, code, expected in ((0, 137, ["12"]), (1, 85, ["12"]), (2, 86, ["12"]), (3, 137, []), (3, 86, [])):
        node.run("stage.sbatch", STUB_CODE=str(code), SLURM_RESTART_COUNT=str(restarts), ALIGNMENT_FAULTS="2")
        assert node.requeued == expected, restarts


@pytest.mark.parametrize("code", [85, 143, 137])
def test_a_cancelled_job_stays_cancelled(code: int, node: Node) -> None:
    """Slurm would requeue it, if asked."""
    ends, said = node.run("stage.sbatch", STUB_CODE=str(code), STUB_STATE="COMPLETING")
    assert (ends, node.requeued) == (code, [])
    assert "Slurm has ended the job" in said


def test_a_job_that_saved_past_its_time_limit_comes_back(node: Node) -> None:
    node.run("stage.sbatch", STUB_CODE="85", STUB_STATE="COMPLETING", STUB_END="2001-01-01T00:00:00")
    assert node.requeued == ["12"]
    node.run("stage.sbatch", STUB_CODE="85", STUB_STATE="COMPLETING", STUB_END="N/A")
    assert node.requeued == [], "without a limit it cannot have passed it"


@pytest.mark.parametrize("code", ["134", "138", "143", "1"])
def test_what_is_finished_ends_well_however_its_processes_do(code: str, node: Node, tmp_path: Path) -> None:
    mark = tmp_path / "artifact.json"
    # The ranks write it before they end.
    (tmp_path / "srun").write_text(SRUN.replace('exit "$STUB_CODE"', f'touch "{mark}"; exit "$STUB_CODE"'))
    assert node.run("stage.sbatch", STUB_CODE=code, ALIGNMENT_FINISHED=str(mark))[0] == 0
    assert node.requeued == []
    ends, said = node.run("stage.sbatch", STUB_CODE="1", ALIGNMENT_FINISHED=str(mark))
    assert (ends, node.calls) == (0, []), "and is not started a second time"
    assert "finished already" in said


@pytest.mark.parametrize("away", [1, 5])
def test_a_controller_that_is_away_for_a_moment_is_asked_again(away: int, node: Node, tmp_path: Path) -> None:
    # It goes as the ranks end.
    (tmp_path / "srun").write_text(
        SRUN.replace('exit "$STUB_CODE"', f'printf "%0.s\\n" {{1..{away}}} >"$STUB/away"; exit 85')
    )
    node.lose_controller(0)
    assert node.run("stage.sbatch")[0] == 85
    assert node.requeued == ["12"]


def test_a_controller_that_stays_away_is_not_waited_for_without_end(node: Node, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(SRUN.replace('exit "$STUB_CODE"', 'yes | head -n 99 >"$STUB/away"; exit 85'))
    node.lose_controller(0)
    code, said = node.run("stage.sbatch")
    assert (code, node.requeued) == (85, [])
    assert "Slurm does not answer" in said


def test_a_job_whose_end_nobody_tells_has_it_far_off(node: Node) -> None:
    """An empty answer is no date, and a cancelled job is not taken for one that has passed its limit."""
    ends, said = node.run("stage.sbatch", STUB_CODE="85", STUB_STATE="COMPLETING", STUB_END="")
    assert (ends, node.requeued) == (85, [])
    assert "Slurm has ended the job" in said
    node.lose_controller(6)
    assert node.run("stage.sbatch", STUB_CODE="85", STUB_STATE="COMPLETING")[0] == 85
    assert node.requeued == []


def warned(node: Node, seconds: int = 10, **environment: str) -> tuple[int, str, float]:
    """A job that is told of its limit while its ranks work: its code, what it says, and how long it lived on."""
    job = node.start("stage.sbatch", STUB_SLEEP=str(seconds), **environment)
    until = time.monotonic() + 20
    while not (node.folder / "began").exists() and time.monotonic() < until:
        time.sleep(0.05)
    began = time.monotonic()
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=30)
    return job.returncode, said, time.monotonic() - began


def test_the_time_limit_is_told_to_the_ranks(node: Node) -> None:
    code, said, seconds = warned(node)
    assert "ranks got USR1" in node.calls
    assert (code, node.requeued) == (85, ["12"])
    assert "saved before its end" in said
    assert seconds < 5, "nobody waits for the limit itself"


def test_ranks_that_do_not_heed_the_time_limit_are_queued_again_before_it(node: Node) -> None:
    ends = {"STUB_DEAF": "yes", "STUB_END": in_seconds(4)}
    code, said, _ = warned(node, **ends)
    assert "ranks got USR1" in node.calls
    assert (code, node.requeued) == (85, ["12"])
    assert "still at work shortly before its end; queueing again" in said


def test_ranks_that_do_not_heed_the_time_limit_are_not_queued_again_without_end(node: Node) -> None:
    most = {"SLURM_RESTART_COUNT": "2", "ALIGNMENT_REQUEUES": "2"}
    code, said, _ = warned(node, 2, STUB_DEAF="yes", STUB_END=in_seconds(2), STUB_CODE="3", **most)
    assert (code, node.requeued) == (3, []), "they go on until Slurm ends them"
    assert "it was queued again 2 times, and ALIGNMENT_REQUEUES=2" in said


def in_seconds(seconds: int) -> str:
    """A moment to come as squeue tells it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))


def test_ranks_meet_at_the_first_nodes_address(node: Node) -> None:
    node.run("stage.sbatch", ["stage=sft"], SLURM_NTASKS="4")
    assert "MASTER_ADDR 10.0.0.7" in node.calls
    assert "cores 3" in node.calls, "srun does not take it from sbatch"
    assert any("--nodelist=first hostname --ip-address" in line for line in node.calls)
    node.run("stage.sbatch", ["stage=sft"], SLURM_NTASKS="1")
    assert "MASTER_ADDR none" in node.calls, "who is alone meets nobody"


def test_the_network_interface_can_be_chosen(node: Node) -> None:
    shown = "3: ib0    inet 172.16.0.9/20 brd 172.16.15.255 scope global ib0"
    several = {"SLURM_NTASKS": "2", "ALIGNMENT_INTERFACE": "ib0"}
    node.run("stage.sbatch", STUB_ADDRESS=shown, **several)
    assert "MASTER_ADDR 172.16.0.9" in node.calls
    code, said = node.run("stage.sbatch", STUB_ADDRESS="", **several)
    assert code == 2
    assert "ALIGNMENT_INTERFACE=ib0: first has no such interface" in said


def test_the_command_line_arrives_as_it_was_typed(node: Node, tmp_path: Path) -> None:
    odd = ["stage=sft", "name=it's 100%a (x=1)", "text=a\nb  c", "only=[run_%a]", "empty="]
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\0" "${@: -5}" >"$STUB/typed"\n')
    node.run("stage.sbatch", odd, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="3")
    assert (tmp_path / "typed").read_text().split("\0")[:-1] == [*odd[:3], "only=[run_3]", odd[4]]


@pytest.mark.parametrize("force", ["force=true", "force=True", "force=TRUE", "force=bool(1)"])
def test_a_restart_goes_on_instead_of_starting_from_nothing(force: str, node: Node) -> None:
    node.run("stage.sbatch", ["stage=sft", force])
    assert node.ranks.endswith(f"-m alignment.run stage=sft {force}")
    node.run("stage.sbatch", ["stage=sft", force], SLURM_RESTART_COUNT="1")
    assert node.ranks.endswith("-m alignment.run stage=sft")


def test_a_task_of_an_array_is_queued_again_alone(node: Node, tmp_path: Path) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2", "STUB_CODE": "85"}
    node.run("warp.sbatch", ["pipeline=warp"], **task)
    assert node.requeued == ["12_2"], "12 may be the number of all of them"
    assert "only=[warp_1_run_2]" in node.ranks
    (tmp_path / "mark").touch()
    assert node.run("warp.sbatch", ALIGNMENT_FINISHED_2=str(tmp_path / "mark"), **task)[0] == 0
    assert node.run("warp.sbatch", ALIGNMENT_FINISHED_1=str(tmp_path / "mark"), **task)[0] == 85


def test_python_comes_from_a_venv_or_an_image(node: Node, tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text("")
    python.chmod(0o755)
    (tmp_path / "srun").write_text(
        SRUN.replace("printf", 'echo "python $(command -v python)" >>"$STUB/calls"\nprintf', 1)
    )
    node.run("stage.sbatch", ["stage=sft"], ALIGNMENT_ENVIRONMENT=str(tmp_path / "venv"))
    assert f"python {python}" in node.calls
    assert node.ranks.endswith(" python -m alignment.run stage=sft")

    node.run("stage.sbatch", ALIGNMENT_ENVIRONMENT="/images/a.sif", ALIGNMENT_MOUNTS="/scratch,/data")
    assert (
        f"apptainer exec --pwd {os.getcwd()} --bind {os.getcwd()},/scratch,/data /images/a.sif python -m" in node.ranks
    )
    node.run("stage.sbatch", ALIGNMENT_ENVIRONMENT="/images/a.sif", SLURM_GPUS_ON_NODE="8")
    assert "--nv /images/a.sif python" in node.ranks

    pyxis = {"ALIGNMENT_ENVIRONMENT": "/images/a.sqsh", "ALIGNMENT_MOUNTS": "/data"}
    node.run("stage.sbatch", STUB_HELP="--container-image=", **pyxis)
    assert f"--container-mounts={os.getcwd()}:{os.getcwd()},/data:/data python -m alignment.run" in node.ranks
    code, said = node.run("stage.sbatch", **pyxis)
    assert code == 2
    assert "lacks Pyxis" in said
    code, said = node.run("stage.sbatch", ALIGNMENT_ENVIRONMENT=str(tmp_path))
    assert code == 2
    assert "no bin/python in it, and no image" in said


def test_servers_say_where_they_listen(node: Node) -> None:
    token = {"ALIGNMENT_SERVE_TOKEN": "token-of-a-test"}
    _, said = node.run("reward_server.sbatch", ["target=latest:safety"], ALIGNMENT_PORT="9000", **token)
    assert "token-of-a-test" not in said + node.ranks
    assert "reward=remote:10.0.0.7:9000" in said
    assert node.ranks.endswith("stage=serve host=10.0.0.7 port=9000 target=latest:safety")
    _, said = node.run("vllm.sbatch", ["/models/policy"], VLLM_API_KEY="key-of-a-test")
    assert "key-of-a-test" not in said + node.ranks
    assert "server.url=http://10.0.0.7:8000" in said
    assert " vllm serve /models/policy --host 10.0.0.7 --port 8000 " in node.ranks


@pytest.mark.parametrize(
    ("script", "token"), [("reward_server.sbatch", "ALIGNMENT_SERVE_TOKEN"), ("vllm.sbatch", "VLLM_API_KEY")]
)
def test_a_server_in_a_network_has_a_token(script: str, token: str, node: Node) -> None:
    code, said = node.run(script, ["what-it-serves"], **{token: ""})
    assert code == 2
    assert f"{token} is not set" in said
    assert node.calls == [], "nothing has begun"


@pytest.mark.parametrize("script", sorted(path.name for path in JOBS.glob("*.sbatch")))
def test_scripts_hold_resources_and_one_command(script: str) -> None:
    subprocess.run(["bash", "-n", str(JOBS / script)], check=True)
    lines = (JOBS / script).read_text().splitlines()
    assert sum("ranks " in line for line in lines if not line.startswith("#")) == 1
    told = {line.split()[1].partition("=")[0] for line in lines if line.startswith("#SBATCH")}
    assert told >= {"--requeue", "--signal", "--open-mode", "--time", "--nodes", "--ntasks-per-node"}
    assert not [line for line in lines if "learning_rate" in line or "optimisation." in line]
