"""Keys, tokens and passwords are planted where the project finds them; then all that it has written is searched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from local_server import LocalServer, completion, content, status
from planting import PROXY_PASSWORD, SECRETS, leaks, planted, spellings

from alignment import artifacts, console, run
from alignment.artifacts import Artifact
from alignment.errors import UserError, without_secrets
from alignment.reporting import pages

__all__ = ["planted"]


def echoing(handler: Any) -> None:
    """An error that repeats what it was sent, as some servers do."""
    said = f"Incorrect API key: {handler.headers['authorization']}; {SECRETS['OPENAI_API_KEY']} is not known"
    status(401, said)(handler)


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    for number, spelling in enumerate(spellings(SECRETS["MY_DATABASE_PASSWORD"])):
        (tmp_path / f"{number}.bin").write_bytes(b"\0\xff" + spelling + b"\0")
    assert len(leaks(tmp_path)) == len(spellings(SECRETS["MY_DATABASE_PASSWORD"]))
    assert leaks(tmp_path / "nothing", f"x{PROXY_PASSWORD}y") == ["HTTPS_PROXY in printed"]


def test_a_chain_of_stages_tells_no_secret(
    planted: LocalServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Data, answers of an endpoint that repeats the key in errors and answers, a run of W&B, the record shown."""
    store = f"store={tmp_path}/runs"
    quick = ["endpoint.retries=1", "endpoint.back_off=0.01", "endpoint.concurrency=1"]
    asked = ["stage=teach", "prompts=latest:asked", "teacher=endpoint:big", "splits=[train]", "count=3", "guided=[]"]
    recipe = ["recipe.sources.0.miniature.train.rows=12", "name=asked"]
    assert run.door(["stage=data", "recipe=miniature_questions", store, *recipe]) == 0
    for fault in (
        echoing,
        status(500, f"key {SECRETS['OPENAI_API_KEY']}"),
        content(completion(f"It is {SECRETS['OPENAI_API_KEY']}.")),
    ):
        planted.always = fault
        assert run.door([*asked, *quick, store]) == 2
        assert run.door([*asked, *quick, store, f"decoding.seed={SECRETS['OPENAI_API_KEY']}"]) == 2
    planted.always = None
    assert run.door([*asked, *quick, store]) == 0
    assert run.door(["stage=show", "target=latest:teach", store]) == 0
    told = capfd.readouterr()
    assert "Incorrect API key" in told.err, "the server's message is shown, without the key"
    assert planted.keys == {f"Bearer {SECRETS['OPENAI_API_KEY']}"}, "and the key was used"
    assert len(list(tmp_path.glob("runs/*/*/artifact.json"))) == 2
    assert leaks(tmp_path, told.out, told.err) == []


def test_wandb_is_told_no_secret(planted: LocalServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from alignment.training.tracking import Tracker, conclude
    from alignment.training.wandb_runs import TrackerSettings

    out = tmp_path / "runs" / "p" / "sft-01234567"
    out.mkdir(parents=True)
    settings = TrackerSettings(wandb="offline", project="p", every=1)
    tracker = Tracker(settings, out, {"url": f"https://me:{PROXY_PASSWORD}@host/x"}, stage="sft", inputs={})
    tracker.rewind(0)
    tracker.log(1, {"loss": 1.0})
    tracker.table("answers", 1, [{"text": "a"}])
    tracker.finish({"loss": 1.0})
    conclude(artifacts.finish(Artifact(out, "policy", "sft", "sft", "0123456789" * 6)))
    told = capfd.readouterr()
    assert list(out.glob("wandb/offline-run-*/run-*.wandb"))
    assert leaks(tmp_path, told.out, told.err) == []


REFUSED: list[Callable[[], Any]] = [
    lambda: UserError(f"no {SECRETS['HF_TOKEN']}", cause=SECRETS["WANDB_API_KEY"], remedy=SECRETS["OPENAI_API_KEY"]),
    lambda: UserError("x", cause=f"https://somebody:{PROXY_PASSWORD}@127.0.0.1:9 cannot be reached"),
    lambda: artifacts.load(Path(f"/nowhere/{SECRETS['MY_DATABASE_PASSWORD']}")),
]


@pytest.mark.parametrize("refused", range(len(REFUSED)))
def test_errors_tell_no_secret(planted: LocalServer, refused: int, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        error = REFUSED[refused]()
    except UserError as raised:
        error = raised
    pages.complain(error)
    console.say(str(error), style="")
    told = capsys.readouterr()
    assert "…" in told.err
    assert leaks(Path("/nonexistent"), told.out, told.err, str(error), repr(error), repr(error.__reduce__())) == []


@pytest.mark.parametrize("key", ["tracker.project", "name", "seed"])
@pytest.mark.parametrize("value", [SECRETS["HF_TOKEN"], f"https://somebody:{PROXY_PASSWORD}@host/x"])
def test_settings_take_no_secret(
    planted: LocalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    assert run.door(["stage=sft", f"store={tmp_path}/runs", f"{key}={value}", "dry_run=true"]) == 2
    told = capsys.readouterr()
    assert leaks(tmp_path, told.out, told.err) == []


def test_a_key_of_the_wrong_form_is_told_without_it(
    planted: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.training.wandb_runs import Run, TrackerSettings

    def login(**_: Any) -> bool:
        raise ValueError("API key must have 40 characters: short-key-planted-77")

    monkeypatch.setenv("WANDB_API_KEY", "short-key-planted-77")
    monkeypatch.setattr("wandb.login", login)
    settings = TrackerSettings(wandb="auto", project="p", every=1)
    with pytest.raises(UserError, match="tracker") as told:
        Run(settings, folder=tmp_path, place=tmp_path / "p" / "s-0", stage="sft", config={})
    assert "short-key-planted-77" not in str(told.value)


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/somebody/token")
    assert without_secrets("false at /home/somebody/token") == "false at /home/somebody/token"
    assert without_secrets("https://host:80/a@b") == "https://host:80/a@b"


@pytest.mark.slow
def test_the_whole_smoke_pipeline_tells_no_secret(
    planted: LocalServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every stage, with W&B offline."""
    assert run.door(["stage=pipeline", "pipeline=smoke", f"store={tmp_path}/runs", "tracker=offline"]) == 0
    told = capfd.readouterr()
    assert list(tmp_path.rglob("*.wandb"))
    assert leaks(tmp_path, told.out, told.err) == []
