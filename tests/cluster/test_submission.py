"""Which jobs a plan becomes, what each is told, and what a second submission does."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from stub_slurm import Stub

from alignment import artifacts, run
from alignment.artifacts import Artifact
from alignment.cluster import launcher, ledger, slurm, submission
from alignment.cluster.launcher import LauncherSettings
from alignment.cluster.submission import Batch, Task
from alignment.errors import UserError

SLURM = LauncherSettings.parse(yaml.safe_load((run.CONF / "launcher" / "slurm.yaml").read_text()))
ODD = "it's (a, b) ${oc.env:HOME} %a 누가 x=1"


def task(store: Path, step: str, *needs: str, stage: str = "sft", trains: bool = False) -> Task:
    """A step that is named like its fingerprint."""
    asked = launcher.resources(SLURM, step, stage, trains=trains)
    return Task(
        step, stage, step, store / "mini" / f"{step}-00000000", needs, ("stage=pipeline", "pipeline=mini"), asked
    )


def diamond(store: Path) -> list[Task]:
    """base → run_1, run_2 → merged → report."""
    return [
        task(store, "base"),
        task(store, "run_1", "base"),
        task(store, "run_2", "base"),
        task(store, "merged", "run_1", "run_2", stage="merge"),
        task(store, "report", "merged", stage="report"),
    ]


def submit(tasks: list[Task], store: Path, stub: Stub) -> list[list[str]]:
    """Submit to the stub; the calls of sbatch, by options and arguments."""
    stub.forget()
    submission.submit(tasks, store, Path("jobs"), force=False)
    return stub.calls("sbatch")


def running(stub: Stub, tasks: list[Task], store: Path, **states: str) -> None:
    """Let the queue show every job that the ledger knows, in these states by step, the rest pending."""
    known = ledger.read_all(store)
    jobs = [
        slurm.Job(str(known[one.fingerprint].job), states.get(one.step, "PENDING"), reason="Dependency")
        for one in tasks
        if one.fingerprint in known
    ]
    stub.queue(jobs)


# ── what is submitted ────────────────────────────────────────────────────────────────────────────


def test_sisters_are_one_array_and_every_job_waits_for_its_inputs(tmp_path: Path, stub: Stub) -> None:
    calls = submit(diamond(tmp_path), tmp_path, stub)
    assert [call[-1] for call in calls] == ["only=[base]", "only=[run_%a]", "only=[merged]", "only=[report]"]
    waits = [[one for one in call if one.startswith("--dependency")] for call in calls]
    assert waits == [
        [],
        ["--dependency=afterok:101"],
        ["--dependency=afterok:102_1:102_2"],
        ["--dependency=afterok:103"],
    ]
    for call, waiting in zip(calls, waits, strict=True):
        assert ("--kill-on-invalid-dep=yes" in call) == bool(waiting), "a job whose input failed would wait for ever"
    assert [one for one in calls[1] if one.startswith("--array")] == ["--array=1,2"]
    assert [Path(next(one for one in call if one.endswith(".sbatch"))).name for call in calls] == [
        *("stage.sbatch", "warp.sbatch", "stage.sbatch", "stage.sbatch")
    ]
    known = ledger.read_all(tmp_path)
    assert [known[name].job for name in ("base", "run_1", "run_2", "merged")] == ["101", "102_1", "102_2", "103"]
    assert known["run_2"].log == str(tmp_path / "mini" / "logs" / "run-102_2.out")


@pytest.mark.parametrize(
    ("first", "second"),
    [(("run_1",), ("run_2", "base")), (("run_1",), ("walk_2",)), (("run_1",), ("run_02",)), (("run_1",), ("run2",))],
)
def test_steps_that_differ_in_more_than_a_number_are_no_sisters(
    first: tuple[str, ...], second: tuple[str, ...], tmp_path: Path, stub: Stub
) -> None:
    calls = submit([task(tmp_path, "base"), task(tmp_path, *first), task(tmp_path, *second)], tmp_path, stub)
    assert len(calls) == 3


def test_a_job_is_told_where_python_is_and_which_file_says_that_it_is_done(tmp_path: Path, stub: Stub) -> None:
    submit(diamond(tmp_path), tmp_path, stub)
    single, array, *_ = stub.environments("sbatch")
    assert single["ALIGNMENT_ENVIRONMENT"] == sys.prefix
    assert single["ALIGNMENT_FINISHED"] == str(tmp_path / "mini" / "base-00000000" / artifacts.RECORD)
    assert array["ALIGNMENT_FINISHED_2"] == str(tmp_path / "mini" / "run_2-00000000" / artifacts.RECORD)
    assert "ALIGNMENT_FINISHED" not in array
    assert (single["ALIGNMENT_REQUEUES"], single["ALIGNMENT_FAULTS"]) == ("50", "3")


def test_what_is_made_again_is_not_taken_for_finished(tmp_path: Path, stub: Stub) -> None:
    submission.submit(diamond(tmp_path), tmp_path, Path("jobs"), force=True)
    assert not any(name.startswith("ALIGNMENT_FINISHED") for said in stub.environments("sbatch") for name in said)


# ── a second time ────────────────────────────────────────────────────────────────────────────────


def test_what_is_queued_is_not_submitted_again(tmp_path: Path, stub: Stub) -> None:
    tasks = diamond(tmp_path)
    submit(tasks, tmp_path, stub)
    running(stub, tasks, tmp_path, base="RUNNING")
    assert submit(tasks, tmp_path, stub) == []
    assert stub.calls("scancel") == []


def test_after_a_failure_what_failed_and_all_that_waited_is_submitted_anew(tmp_path: Path, stub: Stub) -> None:
    tasks = diamond(tmp_path)
    submit(tasks, tmp_path, stub)
    # base is finished; one run failed, the other goes on, and Slurm has not yet taken what waits out of the queue.
    left = [replace(one, needs=tuple(need for need in one.needs if need != "base")) for one in tasks[1:]]
    running(stub, left, tmp_path, run_1="FAILED", run_2="RUNNING")
    calls = submit(left, tmp_path, stub)
    assert [call[-1] for call in calls] == ["only=[run_1]", "only=[merged]", "only=[report]"]
    assert "--dependency=afterok:101:102_2" in calls[1]
    assert stub.calls("scancel") == [["103", "104"]], "jobs that wait for what has failed are void"


def test_a_job_that_can_never_begin_counts_for_nothing(tmp_path: Path, stub: Stub) -> None:
    tasks = diamond(tmp_path)[:1]
    submit(tasks, tmp_path, stub)
    stub.queue([slurm.Job("101", "PENDING", reason=slurm.HOPELESS)])
    assert len(submit(tasks, tmp_path, stub)) == 1


def test_a_job_that_began_and_waits_to_begin_again_stays(tmp_path: Path, stub: Stub) -> None:
    tasks = diamond(tmp_path)
    submit(tasks, tmp_path, stub)
    stub.queue([slurm.Job("102_1", "PENDING", restarts=2, reason="BeginTime")])
    # Its input is finished by now.
    assert submit([replace(tasks[1], needs=())], tmp_path, stub) == []


def test_where_one_is_refused_those_before_it_stay_known(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = diamond(tmp_path)
    monkeypatch.setenv("STUB_REFUSE", "only=[merged]")
    with pytest.raises(UserError, match="Invalid partition name") as refused:
        submit(tasks, tmp_path, stub)
    assert "launcher.partition" in refused.value.remedy
    assert ledger.read_all(tmp_path).keys() == {"base", "run_1", "run_2"}
    monkeypatch.delenv("STUB_REFUSE")
    running(stub, tasks, tmp_path)
    assert [call[-1] for call in submit(tasks, tmp_path, stub)] == ["only=[merged]", "only=[report]"]


# ── through the door ─────────────────────────────────────────────────────────────────────────────


def test_a_stage_of_its_own_passes_on_the_command_line_as_it_was_typed(tmp_path: Path, stub: Stub) -> None:
    store = f"{tmp_path}/{ODD}"
    typed = ["name=100%j", "optimisation.steps=3", "engine=zero2", f"store={store}", "tracker=off"]
    given = ["launcher=slurm", "launcher.nodes=2", "launcher.gpus=4", "launcher.extra=--nice=3", "launcher.account=x,y"]
    assert run.door(["stage=sft", *typed, *given]) == 0
    *parts, last = stub.calls("sbatch")
    assert last[-7:] == ["stage=sft", *typed, "launcher=local"]
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--account=x,y", "--nice=3"} <= {*last}
    assert f"--output={store}/solo/logs/100%j-%j.out".replace("%", "%%").replace("-%%j", "-%j") in last
    waited = next(one for one in last if one.startswith("--dependency="))
    # What it reads of the miniature, with the engine and the store that were asked for.
    assert waited == "--dependency=afterok:103:104"
    shared = ["engine=zero2", f"store={store}", "tracker=off", "launcher=local"]
    heads = ["stage=pipeline", "pipeline=mini"]
    assert [part[-7:] for part in parts] == [
        [*heads, *shared, f"only=[{name}]"] for name in ("text", "tokenizer", "base", "conversations")
    ]
    assert "--ntasks-per-node=4" in parts[2], "pretraining is training too"
    assert {"--nodes=1", "--ntasks-per-node=1"} <= {*parts[0]}
    assert not any(one.startswith("--gpus") for one in parts[0]), "reading text needs no GPU"


def test_the_command_of_a_job_makes_that_step(tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["stage=pipeline", "pipeline=smoke", "pipeline.sft_steps=7", f"store={tmp_path}/runs", "tracker=off"]
    assert run.door([*typed, "only=[sft]", "launcher=slurm", "launcher.gpus=0"]) == 0
    asked = {entry.step: Path(entry.folder) for entry in ledger.read(tmp_path / "runs" / "smoke")}
    assert asked.keys() >= {"text", "tokenizer", "base", "sft"}
    assert "ppo" not in asked
    call = next(call for call in stub.calls("sbatch") if call[-1] == "only=[sft]")
    assert call[-7:] == [*typed, "launcher=local", "only=[sft]"]
    capsys.readouterr()
    assert run.door([*call[-7:], "dry_run=true"]) == 0
    assert asked["sft"].name in capsys.readouterr().out, "by its fingerprint"


def test_a_finished_step_is_left_out(tmp_path: Path, stub: Stub) -> None:
    arguments = ["stage=data", "recipe=miniature_text", f"store={tmp_path}/runs", "launcher=slurm"]
    assert run.door([*arguments, "dry_run=true"]) == 0
    assert stub.calls("sbatch") == [], "a dry run submits nothing"
    assert run.door(arguments) == 0
    (entry,) = ledger.read(tmp_path / "runs" / "solo")
    folder = Path(entry.folder)
    folder.mkdir(parents=True)
    artifacts.finish(Artifact(folder, "dataset", "data", "data", entry.fingerprint))
    stub.forget()
    assert run.door(arguments) == 0
    assert stub.calls("sbatch") == []
    for typed in ("force=true", "force=TRUE", "force=bool(1)"):
        stub.forget()
        assert run.door([*arguments, typed]) == 0
        assert [one for one in stub.calls("sbatch")[0] if one.startswith("force")] == ["force=true"], typed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stage=sft", "launcher.nodes=2"], "launcher.nodes=2: nothing here could give it"),
        (["stage=sft", "launcher.partition=gpu"], "launcher.partition=gpu: nothing here could give it"),
        (
            ["stage=sft", "launcher=slurm", "launcher.gpus=2"],
            "its engine is for one process, and 1 × 2 GPUs would start 2",
        ),
        (["stage=sft", "launcher=slurm", "launcher.nodes=3", "engine=zero2"], "does not divide among 3 processes"),
        (["stage=sft", "launcher=slurm", "engine=ddp"], "its engine is for several processes"),
        (["stage=sft", "launcher=slurm", "launcher.of={sfd: {nodes: 2}}"], "Did you mean 'sft'"),
        (["stage=sft", "launcher=slurm", "launcher.of={sft: {node: 2}}"], "Did you mean 'nodes'"),
        (["stage=sft", "launcher=slurm", "launcher.of={sft: {nodes: 0}}"], "greater than or equal to 1"),
        (["stage=sft", "launcher=slurm", "launcher.extra=--constraint a100"], "'a100' is no option"),
        (["stage=sft", "launcher=slurm", "launcher.extra=--comment='x"], "No closing quotation"),
        (["stage=show", "launcher=slurm"], "makes nothing, and runs where it is typed"),
        (["stage=pipeline", "pipeline=smoke", "only=[sfd]"], "only=sfd: pipeline=smoke has no such step"),
        (["stage=data", "launcher=slurm", "store=/dev/null/runs"], "store=<folder>"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_submitted(
    arguments: list[str], told: str, tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    store = [] if any(one.startswith("store=") for one in arguments) else [f"store={tmp_path}/runs"]
    assert run.door([*arguments, *store]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert stub.calls("sbatch") == []


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["stage=data", "recipe=miniature_text", f"store={tmp_path}/runs", "launcher=slurm"]
    assert run.door(arguments) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err
    assert run.door([*arguments, "dry_run=true"]) == 0, "what would be submitted can be looked at anywhere"


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def test_other_values_by_stage_and_by_step(tmp_path: Path) -> None:
    told = SLURM.model_copy(
        update={"gpus": 8, "of": {"rl": {"nodes": 4}, "rl_2": {"time": "1:00"}, "merge": {"gpus": 0}}}
    )
    assert launcher.resources(told, "rl_1", "rl", trains=True).world == 32
    second = launcher.resources(told, "rl_2", "rl", trains=True)
    assert (second.world, second.settings.time, second.shape) == (32, "1:00", "4 × 8 GPUs")
    merge = launcher.resources(told, "merged", "merge", trains=False)
    assert (merge.world, merge.gpus, merge.shape) == (1, 0, "1 × 8 cores")
    other = launcher.resources(told, "label", "label", trains=False)
    assert (other.world, other.gpus) == (1, 1), "one process that runs a model has a GPU"


def test_what_squeue_and_sacct_print_is_understood(stub: Stub) -> None:
    stub.queue(
        [slurm.Job("7_1", "PENDING", 2, "N/A", "", "BeginTime", "ann"), slurm.Job("8", "RUNNING", nodes="n[0-1]")]
    )
    found = slurm.queue(["ann", "bob"])
    assert found["7_1"] == slurm.Job("7_1", "PENDING", 2, "N/A", "", "BeginTime", "ann")
    assert found["7_1"].waits
    assert not found["8"].waits
    assert found["8"].nodes == "n[0-1]"
    assert "--user=ann,bob" in stub.calls("squeue")[0]
    (stub.folder / "sacct.says").write_text("9|CANCELLED by 1000\n10_2|COMPLETED\n")
    ended = slurm.ended(["9", "10_2"])
    assert ended["9"].state == "CANCELLED"
    assert not ended["9"].alive
    assert ended["10_2"].state == slurm.ENDED_WELL


def test_a_ledger_that_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / ledger.LEDGER).write_text('{"steps": [{"step": 1')
    with pytest.raises(UserError, match=r"jobs\.json"):
        ledger.read_all(tmp_path)


def test_what_was_never_begun_makes_way_for_other_numbers(tmp_path: Path) -> None:
    def entry(fingerprint: str, job: str | None = None) -> ledger.Entry:
        return ledger.Entry("sft", "sft", fingerprint, str(tmp_path / "mini" / f"sft-{fingerprint}"), job)

    ledger.announce([entry("11111111")], tmp_path)
    ledger.announce([entry("22222222")], tmp_path)
    assert {one.fingerprint for one in ledger.read(tmp_path / "mini")} == {"22222222"}
    ledger.write([entry("33333333", "7")])
    ledger.write([entry("44444444", "8")])
    ledger.announce([entry("44444444")], tmp_path)
    told = {one.fingerprint: one.job for one in ledger.read(tmp_path / "mini")}
    assert told == {"33333333": "7", "44444444": "8"}, "what a job makes stays its own"
    assert json.loads((tmp_path / "mini" / ledger.LEDGER).read_text())["steps"]


def test_a_batch_of_one_has_no_array(tmp_path: Path) -> None:
    batch = Batch((task(tmp_path, "run_1"),))
    command = submission.command(batch, [], Path("jobs"))
    assert not any(one.startswith("--array") for one in command)
    assert command[-1] == "only=[run_1]"
