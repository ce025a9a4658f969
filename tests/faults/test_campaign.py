"""A small share of the campaign, and that it would see what it looks for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import campaign
import forking
import pytest
from campaign import Struck, Undisturbed

from alignment import artifacts, stages

KINDS = {
    "kill": campaign.STAGES,
    "full disk": campaign.STAGES,
    "byte": campaign.WITH_CHECKPOINTS,
    "cut checkpoint": campaign.WITH_CHECKPOINTS,
    "cut part": campaign.WITH_PARTS,
    "cut weights": campaign.WITH_WEIGHTS,
    "cut result": campaign.STAGES,
}


@pytest.mark.slow
def test_a_small_campaign_finds_nothing(tmp_path: Path, smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "smoke").symlink_to(smoke)
    wanted = {("kill", "data"), ("kill", "sft"), ("kill", "offline"), ("kill", "rl"), ("byte", "sft")}
    wanted |= {("cut result", stage) for stage in ("tokenizer", "pretrain", "merge")}
    wanted |= {("cut part", "data")} | ({("full disk", "pretrain")} if campaign.may_mount(tmp_path / "disk") else set())
    todo = []
    for case in campaign.cases(30, 30, 30, 30, 30):
        if (found := (case[0].split("/")[0], case[1])) in wanted:
            wanted.remove(found)
            todo.append(case)
    assert not wanted
    results = campaign.run(tmp_path, todo, workers=1, seed=1)
    assert [(one.case, one.bad) for one in results if one.bad] == []
    # What the log has is not done again.
    log = (tmp_path / "log.jsonl").read_text()
    assert len(campaign.run(tmp_path, todo, workers=1, seed=1)) == len(todo)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_every_stage_that_makes_something_is_struck() -> None:
    named = {line[0].removeprefix("stage=").partition("/")[0] for _, line in campaign.STAGES.values()}
    assert named == set(stages.STAGES)


def test_every_kind_of_fault_meets_every_stage_that_it_can_meet() -> None:
    found = list(campaign.cases(200, 31, 30, 54, 31))
    names = [name for name, *_ in found]
    assert len(set(names)) == len(names) == 346
    met = {kind: {stage for name, stage, _ in found if name.startswith(f"{kind}/")} for kind in KINDS}
    assert met == {kind: set(wanted) for kind, wanted in KINDS.items()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A finished stage that left a file and three rows."""
    folder = tmp_path / "solo" / "sft-12345678"
    folder.mkdir(parents=True)
    record = {"stage": "sft", "files": {"a": "1", "b": "2"}, "metrics": {"loss": 0.1}}
    (folder / "artifact.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "seconds/all": {n / 7}}}\n' for n in range(3)))
    return tmp_path


def plain(store: Path) -> Undisturbed:
    return Undisturbed(campaign.outcome(store), campaign.rows(store), 1.0, 10)


def test_what_is_the_same_passes_and_what_is_not_is_told(store: Path) -> None:
    (folder,) = (store / "solo").iterdir()
    whole = plain(store)
    campaign.same(store, whole)
    metrics, rows = folder / "metrics.jsonl", (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    for changed, said in ((rows[1:], "1 rows are lost"), ([*rows, rows[-1]], "rows twice")):
        metrics.write_text("".join(changed))
        with pytest.raises(Struck, match=said):
            campaign.same(store, whole)
    metrics.write_text("".join(rows))
    (folder / "x.partial").touch()
    with pytest.raises(Struck, match="left behind"):
        campaign.same(store, whole)
    (folder / "x.partial").unlink()
    for scaffold in artifacts.SCAFFOLDS:
        (folder / scaffold).mkdir()
        with pytest.raises(Struck, match=f"left behind: .'{scaffold}'"):
            campaign.same(store, whole)
        (folder / scaffold).rmdir()
    record = folder / "artifact.json"
    record.write_text(record.read_text().replace('"2"', '"3"').replace("0.1", "0.1000001"))
    with pytest.raises(Struck, match="differs in b, metrics/loss"):
        campaign.same(store, whole)


def struck_at(root: Path, plan: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The changes that were made before a fault struck; it strikes by raising here."""

    class Here(Exception):
        pass

    def strike(self: forking.Fault) -> None:
        raise Here

    monkeypatch.setattr(forking.Fault, "_strike", strike)
    fault, done = forking.Fault(str(root), plan), list[str]()
    names = ["a", "b", "c"]
    events = [(event, name) for name in names for event in ("open", "os.rename")]
    try:
        for event, name in events:
            path = str(root / name)
            fault(event, (path, None, os.O_WRONLY | os.O_CREAT) if event == "open" else (f"{path}.partial", path))
            done.append(f"{event} {name}")
    except Here:
        pass
    return done


def test_faults_strike_before_the_change_that_they_are_meant_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_ = [f"{event} {name}" for name in "abc" for event in ("open", "os.rename")]
    for at in range(1, 7):
        assert struck_at(tmp_path, {"at": at}, monkeypatch) == all_[: at - 1]
    assert struck_at(tmp_path, {"at": 7}, monkeypatch) == all_
    # After the second renaming: before whatever is next.
    assert struck_at(tmp_path, {"after": "/[ab]$", "times": 2}, monkeypatch) == all_[:4]
    assert struck_at(tmp_path, {"before": "/b"}, monkeypatch) == all_[:2]


def test_only_changes_below_the_store_count(tmp_path: Path) -> None:
    fault = forking.Fault(str(tmp_path), {})
    fault("open", (str(tmp_path / "a"), "r", os.O_RDONLY))
    fault("open", ("/elsewhere/a", "w", os.O_WRONLY))
    fault("open", (3, "w", os.O_WRONLY))
    fault("compile", (str(tmp_path),))
    assert fault.seen == 0
    fault("open", (str(tmp_path / "a"), "w", os.O_WRONLY))
    fault("os.remove", (str(tmp_path / "a"), -1))
    assert fault.seen == 2
