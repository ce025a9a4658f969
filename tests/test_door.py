"""The command line: what arrives unharmed, what is composed, what is refused and how."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alignment import run
from alignment.errors import UserError


def configured(*arguments: str) -> dict:
    return run.configure(run.read(list(arguments)))


FREE_TEXT = [
    "Who's there?",
    "a (b)",
    "x=1",
    "누가 여기 살아요?",
    "/tmp/a=b/c d",
    "${oc.env:HOME}",
    "${nothing}",
    "12",
    "true",
    "a, b, [c], {d: e}",
    "say \"hi\" \\ and 'bye'",
    "line\nbreak",
    "# no comment",
    "",
]


@pytest.mark.parametrize("words", FREE_TEXT)
def test_free_text_arrives_unharmed(words: str) -> None:
    assert configured("stage=chat", f"prompt={words}")["prompt"] == words


def test_null_is_the_absence_of_text() -> None:
    assert configured("stage=chat", "prompt=null")["prompt"] is None


@pytest.mark.parametrize("path", ["dir:/a b/c=d", "dir:/x/${oc.env:HOME}", "run:it's"])
def test_references_arrive_unharmed_and_replace_the_preset(path: str) -> None:
    model = configured("stage=sft", f"model={path}")["model"]
    assert model["weights"] == path
    assert model["shape"] is None
    assert configured("stage=chat", f"model={path}")["model"] == path


def test_no_interpolation_reads_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    assert configured("stage=sft", "tracker.project=${oc.env:SECRET}")["tracker"]["project"] == "${oc.env:SECRET}"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text((run.RECIPES / "miniature_text.yaml").read_text().replace("Apache-2.0", "${oc.env:SECRET}"))
    with pytest.raises(UserError, match=r"oc\.env"):
        configured("stage=data", f"recipe={recipe}")


def test_values_are_parsed_and_groups_chosen() -> None:
    values = configured("stage=sft", "optimisation.learning_rate=1e-4", "model=gemma2_2b", "engine=gpu", "tracker=off")
    assert values["optimisation"]["learning_rate"] == 1e-4
    assert values["model"]["weights"] == "hf:google/gemma-2-2b"
    assert values["engine"]["precision"] == "bf16"
    assert values["tracker"]["wandb"] == "off"
    assert configured("stage=evaluate", "models=[latest:sft, latest:rl]")["models"] == ["latest:sft", "latest:rl"]


def test_llama2s_values_are_a_preset() -> None:
    numbers = configured("stage=sft/llama2")["optimisation"]
    wanted = {"learning_rate": 2e-5, "weight_decay": 0.1, "batch": 64, "epochs": 2}
    assert {key: numbers[key] for key in wanted} == wanted


def test_sweeps_give_every_combination() -> None:
    request = run.read(["stage=sft", "-m", "seed=0,1", "data=latest:a,latest:b", "name=a, b"])
    requests = run._sweep(request)
    assert [(one.value("seed"), one.value("data")) for one in requests] == [
        ("0", "latest:a"),
        ("0", "latest:b"),
        ("1", "latest:a"),
        ("1", "latest:b"),
    ]
    assert {one.value("name") for one in requests} == {"a, b"}, "free text is not swept"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["stage=sfd"], "Did you mean 'sft'"),
        (["stage=sft", "optimisation.lerning_rate=1"], "Did you mean 'optimisation.learning_rate'"),
        (["stage=sft", "model=gemma2_2c"], "Did you mean 'gemma2_2b'"),
        (["stage=sft", "engine=singel"], "Did you mean 'single'"),
        (["stage=data", "recipe=miniture_text"], "Did you mean 'miniature_text'"),
        (["stage=data", "recipe=/nowhere/x.yaml"], "No such file"),
        (["stage=assess", "suite=/nowhere/x.yaml"], "suite /nowhere/x.yaml: No such file"),
        (["stage=sft", "seed=1,2"], "Add -m"),
        (["stage=sft", "+seed=1"], "Keys are fixed"),
        (["stage=sft", "seed"], "key=value"),
        (["--hlep"], "Did you mean '--help'"),
        (["seed=1"], "stage=… is missing"),
        (["stage=merge", "tracker=off"], "Leave tracker= out"),
        (["stage=merge", "methd=slerp"], "Did you mean 'method'"),
    ],
)
def test_mistakes_are_told_with_a_remedy(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.door(arguments) == 2
    assert word in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("optimisation.learning_rate=-1", "greater than 0"),
        ("optimisation.batch=1.5", "valid integer"),
        ("too_long=shorten", "'refuse' or 'leave_out'"),
        ("data=sft", "is not a reference"),
        ("data=mini:nothing", "no such part"),
        ("data=latest:nothing", "no finished artifact"),
        ("data=run:/nowhere", "no finished artifact"),
        ("model=dir:/nowhere", "no such folder"),
    ],
)
def test_bad_values_exit_with_two_and_write_nothing(
    setting: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.door(["stage=sft", f"store={tmp_path}/runs", setting]) == 2
    assert word in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run.door(["stage=data", f"store={tmp_path}/file/runs"]) == 2
    assert "store=<folder>" in capsys.readouterr().err


@pytest.mark.parametrize("stage", run.options("stage"))
def test_every_shipped_stage_composes_and_validates(stage: str) -> None:
    values = run.configure(run.read([f"stage={stage}"]))
    own = {key: value for key, value in values.items() if key not in run.Door.model_fields}
    run.settings_class(stage).parse(own)


@pytest.mark.parametrize("group", ["model", "engine", "tracker"])
def test_every_shipped_option_validates(group: str) -> None:
    for option in run.options(group):
        values = run.configure(run.read(["stage=sft", f"{group}={option}"]))
        own = {key: value for key, value in values.items() if key not in run.Door.model_fields}
        run.settings_class("sft").parse(own)


def test_help_names_every_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.settings import describe

    monkeypatch.setenv("COLUMNS", "200")
    for stage in ("sft", "data", "evaluate", "chat", "pipeline"):
        assert run.door([f"stage={stage}", "--help"]) == 0
        printed = capsys.readouterr().out
        for info in describe(run.settings_class(stage)):
            assert info.key in printed, f"{stage}: {info.key}"
            assert info.doc, f"{stage}: {info.key} has no meaning"


def test_cfg_job_prints_what_was_composed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.door(["stage=chat", "prompt=${x}", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["prompt"] == "${x}"


def test_the_bare_call_lists_the_stages_without_anything_heavy() -> None:
    code = (
        "import sys; from alignment import run; assert run.door([]) == 0; "
        "assert not {'torch', 'hydra', 'pydantic_core.never', 'transformers'} & sys.modules.keys()"
    )
    listed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    for name in ("data", "pretrain", "sft", "evaluate", "chat", "show", "pipeline"):
        assert f"\n  {name} " in listed
