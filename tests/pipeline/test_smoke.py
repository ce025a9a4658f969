"""One command from nothing to a measured chat model; what exists is reused, what is asked of it answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests_support import QUIET, call
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment import artifacts
from alignment.data.store import card
from alignment.gemma.heads import read_scale
from alignment.store import Store

STEPS = (
    *("text", "conversations", "prompts", "more_subjects", "helpful_pairs", "safety_pairs"),
    *("careful", "dialogues", "questions", "tokenizer", "base"),
    *("teacher_base", "teacher", "teach", "taught", "sft"),
    *("helpful_mixture", "safety_mixture", "helpfulness", "safety", "judged"),
    *("pairs", "label", "preference", "pool", "rs", "ppo"),
    *("ghost", "preprompt", "lasting_mixture", "lasting"),
    *("warp_1_run_1", "warp_1_run_2", "warp_1_linear", "warp_1_slerp", "warp_1"),
    *("versions", "fronts", "report", "release"),
)


def test_every_step_is_finished_whole_and_knows_its_parents(smoke: Path) -> None:
    everything = {one.step: one for one in Store(smoke).finished() if one.path.parent.name == "smoke"}
    made = {name: one for name, one in everything.items() if one.stage != "answer"}
    assert set(made) == set(STEPS)
    asked = {one.parents["models.0"].fingerprint for one in made.values() if one.stage == "evaluate"}
    assert asked <= {one.parents["model"].fingerprint for one in everything.values() if one.stage == "answer"}
    for one in made.values():
        assert one.verify() == []
        for scaffold in ("checkpoints", "parts"):
            assert not (one.path / scaffold).exists(), "resume state is of no use to what is finished"
    sources = card(made["lasting_mixture"].path)["sources"]
    assert {name for name, source in sources.items() if source["rows"]} == {"careful", "ghost", "preprompt"}
    assert made["lasting"].parents["model.weights"].fingerprint == made["ppo"].fingerprint
    assert made["warp_1"].parents["init"].fingerprint == made["lasting"].fingerprint
    assert made["base"].tokens == made["sft"].tokens
    assert made["sft"].licences == ("Apache-2.0",)
    assert made["sft"].metrics["held_out_loss"] < made["sft"].metrics["held_out_loss_before"]
    assert made["safety"].tokens == made["sft"].tokens
    assert (read_scale(made["helpfulness"].path).absolute, read_scale(made["safety"].path).absolute) == (False, True)
    assert made["judged"].metrics["helpfulness/helpful_pairs/accuracy"] > 0


def test_the_model_loads_in_vanilla_transformers_and_stops_at_both_terminators(smoke: Path) -> None:
    path = Store(smoke).latest("sft").path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who lives here?"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids) == "<bos><start_of_turn>user\nWho lives here?<end_of_turn>\n<start_of_turn>model\n"
    stops = model.generation_config.eos_token_id
    assert {tokenizer.convert_ids_to_tokens(one) for one in stops} == {"<eos>", "<end_of_turn>"}


def test_a_second_run_reuses_everything(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob(artifacts.RECORD)}
    again = call(smoke, "stage=pipeline", "pipeline=smoke", *QUIET)
    assert again.returncode == 0, again.stderr
    assert "making" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob(artifacts.RECORD)} == before


def test_the_closing_words_are_a_table_samples_and_what_to_type_next(smoke: Path) -> None:
    said = call(smoke, "stage=pipeline", "pipeline=smoke", *QUIET).stdout
    for word in ("held_out_loss", "gold ", "Next", "report.html", "stage=show target=latest:warp"):
        assert word in said
    assert said.count("  answer ") == 3
    assert said.strip().splitlines()[-1].startswith("finished: run:")


def test_chat_answers_once(smoke: Path) -> None:
    done = call(smoke, "stage=chat", "model=latest:sft", "prompt=Who's there? (x=1)", "max_new_tokens=8")
    assert done.returncode == 0, done.stderr
    again = call(smoke, "stage=chat", "model=latest:sft", "prompt=Who's there? (x=1)", "max_new_tokens=8")
    assert done.stdout == again.stdout, "a seed means one answer"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "latest:sft",
            ("base (policy)", "tokenizer (tokenizer)", "optimisation.learning_rate", "embedding parameters"),
        ),
        ("latest:conversations", ("kept", "licences", "What happened", "<start_of_turn>user", "examples of train")),
        ("latest:lasting_mixture", ("careful", "ghost", "preprompt", "tokens", "gold:safety (the miniature's truth)")),
        ("latest:versions", ("gold by skill", "perplexity", "interval")),
    ],
)
def test_show_tells_what_an_artifact_is(smoke: Path, target: str, words: tuple[str, ...]) -> None:
    done = call(smoke, "stage=show", f"target={target}")
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout, word


def test_dry_run_makes_nothing_and_says_what_would_be(smoke: Path, tmp_path: Path) -> None:
    done = call(tmp_path / "empty", "stage=pipeline", "pipeline=full", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "empty").exists()
    assert done.stdout.count(" run ") >= len(STEPS)
    reused = call(smoke, "stage=pipeline", "pipeline=smoke", "dry_run=true", *QUIET)
    assert reused.stdout.count("reuse") >= len(STEPS)


def test_a_stage_alone_makes_the_miniature_that_it_needs(tmp_path: Path) -> None:
    """`stage=tokenizer` with nothing else said: its text is made on demand, and a line says so."""
    done = call(tmp_path / "runs", "stage=tokenizer")
    assert done.returncode == 0, done.stderr
    assert "mini:text is not there yet" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("finished: run:")


def test_a_model_is_not_measured_on_what_it_has_seen(smoke: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(smoke, store)
    recipe = tmp_path / "seen.yaml"
    text = (Path(__file__).parents[2] / "data_recipes" / "miniature_prompts.yaml").read_text()
    recipe.write_text(text.replace("pool: test, rows: 2000", "pool: sft, rows: 300"))
    assert call(store, "stage=data", f"recipe={recipe}", "name=seen").returncode == 0
    done = call(store, "stage=evaluate", "models=[latest:sft]", "prompts=latest:seen", "reference=null")
    assert done.returncode == 2
    assert "has been trained on" in done.stderr


def test_models_on_prompts_and_suites_stand_side_by_side_in_the_report(smoke: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(smoke, store)
    suite = (Path(__file__).parents[2] / "conf" / "suite" / "miniature.yaml").read_text()
    suite = suite.replace("mini:prompts", "latest:prompts").replace("count: 500", "count: 12")
    (tmp_path / "small.yaml").write_text(suite.replace("max_new_tokens: 64", "max_new_tokens: 8"))
    asked = ("prompts=latest:prompts", "conversations=latest:conversations", "reference=latest:base", "count=12")
    line = ("stage=evaluate", f"suites=[{tmp_path}/small.yaml]", *asked, "max_new_tokens=8")
    done = call(store, *line, "models=[latest:sft,latest:ppo]", "name=both")
    assert done.returncode == 0, done.stderr
    assert "suite small" in done.stdout
    assert "differences, prompt by prompt" in done.stdout
    more = call(store, *line, "models=[latest:sft,latest:ppo,latest:warp_1]", "name=more", "confidence=0.9")
    assert more.stdout.count("making") == 3, "another model is asked, and examined; nobody else is"
    told = call(store, "stage=report", "artifacts=[latest:more]", *QUIET)
    assert told.returncode == 0, told.stderr
    page = (Store(store).latest("report").path / "report.html").read_text()
    assert "small" in page
    assert page.count("<h3>small") == 1, "the suite has its table"
    again = call(store, "stage=show", "target=latest:more")
    assert "suite small" in again.stdout


def test_force_makes_it_again_with_the_same_bits(smoke: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(smoke, store)
    arguments = ("stage=tokenizer", "data=latest:text", "pieces=440")
    first = call(store, *arguments)
    (record,) = store.glob(f"solo/tokenizer-*/{artifacts.RECORD}")
    before = json.loads(record.read_text())
    assert "reused" in call(store, *arguments).stdout
    again = call(store, *arguments, "force=true")
    assert (first.returncode, again.returncode) == (0, 0), again.stderr
    after = json.loads(record.read_text())
    assert after["files"] == before["files"]
    assert "finished" in again.stdout


def test_prune_frees_only_what_nothing_needs(smoke: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(smoke, store)
    for pieces in (441, 442):
        assert call(store, "stage=tokenizer", "data=latest:text", f"pieces={pieces}").returncode == 0
    listed = call(store, "stage=prune")
    assert "would be removed" in listed.stdout
    assert len(list(store.glob("solo/tokenizer-*"))) == 2
    call(store, "stage=prune", "apply=true")
    assert len(list(store.glob("solo/tokenizer-*"))) == 1
    assert sorted(store.glob("smoke/*-????????")) == [
        store / one.relative_to(smoke) for one in sorted(smoke.glob("smoke/*-????????"))
    ]
