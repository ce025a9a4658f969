"""``stage=distill`` from the command line: what every mode learns, what is written, what is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import distilling
import numpy as np
import pytest
import rewarding
import torch
from distilling import made
from local_server import LocalServer, status
from reading_server import reading
from trl import SFTTrainer

from alignment import run
from alignment.artifacts import Artifact
from alignment.chat.render import render
from alignment.chat.tokenizers import load
from alignment.chat.types import row_key
from alignment.data import seen, store
from alignment.data.topk import Store as TopKStore
from alignment.distillation import sources
from alignment.gemma import core
from alignment.objectives.tokens import exact_kl
from alignment.store import Store
from alignment.training import distilled
from alignment.training.rows import plan_steps
from alignment.training.tracking import read_metrics

DRAWN = "drawing={share: 1.0, temperature: 1.0, max_new_tokens: 8}"
MINI = "minillm={teacher_share: 0.2, rollouts: 16, epochs: 2, clip: 0.2, length_normalised: true, single_step: true}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def student(root: Path) -> Path:
    return distilling.student(root / "student")


@pytest.fixture(scope="module")
def teacher(root: Path) -> Path:
    return distilling.teacher(root / "teacher")


@pytest.fixture(scope="module")
def talks(root: Path) -> Path:
    return distilling.talks(root / "talks")


@pytest.fixture(scope="module")
def both(student: Path, teacher: Path) -> tuple[str, ...]:
    """Who learns, and who teaches."""
    return f"student.weights=dir:{student}", "student.shape=null", f"teacher=run:{teacher}"


@pytest.fixture(scope="module")
def live(both: tuple[str, ...], talks: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A student that nobody changes."""
    return made(tmp_path_factory.mktemp("live"), "live", talks, *both, "block=null")


def rows_of(made: Artifact) -> list[dict[str, float]]:
    return read_metrics(made.path / "metrics.jsonl")


def logits(folder: Path, ids: np.ndarray) -> torch.Tensor:
    """``[T, V]`` in float64: what is said behind each token."""
    return core.load(folder).double()(torch.tensor(ids[None].astype(np.int64))).logits[0]


# ── what is learned ──────────────────────────────────────────────────────────────────────────────


def test_the_first_loss_is_the_mean_divergence_over_the_batchs_trained_tokens(
    live: Artifact, student: Path, teacher: Path, talks: Path
) -> None:
    """Against float64, each row alone and unpadded; fp32 over a few hundred tokens is right to 1e-5."""
    tokenizer, conversations = load(student), store.read(talks, "train")
    rendered = [render(one.messages, tokenizer, "gemma2", one.train) for one in conversations]
    lengths = np.array([len(one.ids) for one in rendered])
    divergence = nll = tokens = 0.0
    for place in next(plan_steps(lengths, 8, 6, 0, 32)):
        ids, mask = np.array(rendered[place].ids), torch.tensor(rendered[place].mask)[1:]
        own, theirs = (logits(folder, ids)[:-1] for folder in (student, teacher))
        divergence += exact_kl(theirs, own)[mask].sum().item()
        nll += torch.nn.functional.cross_entropy(own, torch.tensor(ids[1:]), reduction="none")[mask].sum().item()
        tokens += int(mask.sum())
    first = next(row for row in rows_of(live) if "loss" in row)
    assert first["loss"] == pytest.approx(divergence / tokens, rel=1e-5)
    assert first["divergence"] == pytest.approx(divergence / tokens, rel=1e-5)
    assert first["nll"] == pytest.approx(nll / tokens, rel=1e-5)


def test_trl_touches_no_row(
    live: Artifact, both: tuple[str, ...], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("TRL touched our rows")

    monkeypatch.setattr(SFTTrainer, "_prepare_dataset", never)
    monkeypatch.setattr(SFTTrainer, "compute_loss", never)
    monkeypatch.setattr("trl.trainer.sft_trainer.DataCollatorForLanguageModeling.torch_call", never)
    found = made(tmp_path, "live", talks, *both, "block=null")
    assert found.files["model.safetensors"] == live.files["model.safetensors"]


def test_the_record_is_that_of_a_policy(live: Artifact, student: Path, talks: Path) -> None:
    assert live.verify() == []
    assert (live.kind, live.headline, live.metrics["steps"]) == ("policy", "held_out_loss", 6)
    assert live.metrics["held_out_loss"] < live.metrics["held_out_loss_before"]
    assert {*live.parents} >= {"teacher", "student.weights", "data"}
    assert live.tokens is not None
    assert live.tokens.padded == core.read_config(student).vocab_size
    learned = store.read(talks, "train")
    assert set(seen.read(live.path)) == set(seen.numbers(row_key(one) for one in learned))
    losses = [row["loss"] for row in rows_of(live) if "loss" in row]
    assert live.metrics["divergence"] == [row["divergence"] for row in rows_of(live) if "divergence" in row][-1]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("more", ["engine.micro_batch=2", "engine.layout=packed", "engine.loss_chunk=16"])
def test_how_a_batch_is_cut_changes_nothing(
    more: str, live: Artifact, both: tuple[str, ...], talks: Path, tmp_path: Path
) -> None:
    other = made(tmp_path, "live", talks, *both, "block=null", more)
    assert other.fingerprint == live.fingerprint
    for row, mine in zip(rows_of(other), rows_of(live), strict=True):
        assert row == pytest.approx(mine, rel=2e-5)


def test_text_is_learned_from_scratch_with_the_teachers_tokenizer(teacher: Path, root: Path, tmp_path: Path) -> None:
    texts = distilling.texts(root / "texts")
    found = made(tmp_path, "live", texts, f"teacher=run:{teacher}", "block=24", "student.shape=mini_small")
    assert core.shape_of(core.read_config(found.path)).width == 64
    assert found.tokens is not None
    assert found.tokens.digest == load(teacher).digest
    assert not (found.path / seen.FILE).exists()


@pytest.mark.parametrize(
    ("kept", "within"),
    [
        # The store rounds to fp16, and the tail's shape is not known: a lower bound, and a close one.
        (("top_k=400", "tail_draws=0"), 5e-3),
        # Eight tokens alone would leave out a seventh and more; systematic draws of so many leave little to chance.
        (("top_k=8", "tail_draws=2000"), 5e-3),
    ],
)
def test_a_stored_teacher_of_nearly_everything_is_nearly_a_live_one(
    kept: tuple[str, str],
    within: float,
    live: Artifact,
    both: tuple[str, ...],
    student: Path,
    teacher: Path,
    talks: Path,
    tmp_path: Path,
) -> None:
    given = ["stage=teach/given", f"store={tmp_path}", f"data=dir:{talks}", f"teacher=run:{teacher}", "name=told"]
    assert run.door([*given, *kept, "engine.precision=fp32"]) == 0
    told = Store(tmp_path).latest("told").path
    header = TopKStore.open(told).teacher
    assert [f"top_k={header.k}", f"tail_draws={header.drawn}"] == [*kept]
    learner = (f"student.weights=dir:{student}", "student.shape=null", "student.tokenizer=null", "block=null")
    stored = made(tmp_path, "offline", told, *learner)
    losses = [row["divergence"] for row in rows_of(live) if "divergence" in row]
    others = [row["divergence"] for row in rows_of(stored) if "divergence" in row]
    assert others == pytest.approx(losses, rel=within)


def test_with_nothing_but_nll_it_is_a_plain_fine_tuning(
    both: tuple[str, ...], student: Path, talks: Path, tmp_path: Path
) -> None:
    plain = ["stage=sft", f"store={tmp_path}", f"model=dir:{student}", f"data=dir:{talks}", *distilling.SHORT]
    assert run.door([*plain, "name=plain"]) == 0
    mixed = made(tmp_path, "live", talks, *both, "block=null", "objective.nll_weight=1.0")
    tuned = Store(tmp_path).latest("plain")
    assert mixed.metrics["held_out_loss"] == pytest.approx(tuned.metrics["held_out_loss"], rel=1e-5)


# ── on the student's own answers ─────────────────────────────────────────────────────────────────


def test_share_0_is_learning_from_what_is_written(
    live: Artifact, both: tuple[str, ...], talks: Path, tmp_path: Path
) -> None:
    never = "drawing={share: 0.0, temperature: 1.0, max_new_tokens: 8}"
    found = made(tmp_path, "on_policy", talks, *both, never, "objective.divergence=forward_kl", *distilling.SHORT)
    assert found.files["model.safetensors"] == live.files["model.safetensors"]


def test_drawn_answers_are_the_students_and_have_no_nll(
    both: tuple[str, ...], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of NLL changes what is learned from given answers, and not what is learned from drawn ones."""
    steps: list[list[sources.Row]] = []
    original = sources.OnPolicy.rows

    def spied(self: sources.OnPolicy, step: int, groups: object, acting: object) -> object:
        found = original(self, step, groups, acting)  # type: ignore[arg-type]
        steps.append([row for some in found for row in some])
        return found

    monkeypatch.setattr(sources.OnPolicy, "rows", spied)
    plain = made(tmp_path / "a", "on_policy", talks, *both, DRAWN)
    assert len(steps) == 6
    assert all(row.drawn and len(row.targets) <= 8 for step in steps for row in step)
    assert len({row.ids.tobytes() for row in steps[0]}) == 8
    mixed = made(tmp_path / "b", "on_policy", talks, *both, DRAWN, "objective.nll_weight=0.5")
    assert mixed.files["model.safetensors"] == plain.files["model.safetensors"]
    assert mixed.fingerprint != plain.fingerprint


def test_the_share_of_drawn_steps_is_lambda() -> None:
    source = sources.OnPolicy(None, None, 0.3, 1.0, 8, seed=4)  # type: ignore[arg-type]
    drawn = [source.is_drawn(step) for step in range(2_000)]
    # 2,000 draws at 0.3 scatter by 0.01.
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)
    assert drawn == [source.is_drawn(step) for step in range(2_000)]


def test_prompts_alone_are_enough_where_all_answers_are_drawn(
    both: tuple[str, ...], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = distilling.prompts(root / "prompts")
    found = made(tmp_path, "on_policy", prompts, *both, DRAWN)
    assert (found.headline, "held_out_loss" in found.metrics) == ("divergence", False)
    learned = seen.numbers(row_key(one) for one in store.read(prompts, "train"))
    assert set(learned) < set(seen.read(found.path)), "and what its teacher has seen"
    sometimes = "drawing={share: 0.5, temperature: 1.0, max_new_tokens: 8}"
    assert run.door(distilling.line(tmp_path, "on_policy", prompts, *both, sometimes)) == 2
    assert "holds prompts" in capsys.readouterr().err


def test_minillm_moves_towards_its_teacher(both: tuple[str, ...], talks: Path, tmp_path: Path) -> None:
    found = made(
        tmp_path, "minillm", talks, *both, DRAWN, MINI, "optimisation.steps=24", "optimisation.learning_rate=1e-3"
    )
    divergences = [row["divergence"] for row in rows_of(found) if "divergence" in row]
    assert np.mean(divergences[-4:]) < 0.8 * np.mean(divergences[:4])
    assert "clipped" in rows_of(found)[-2]


def test_a_phase_begins_where_it_drew(
    both: tuple[str, ...], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step of a phase the ratio to the policy that drew is 1: nothing is clipped."""
    alone = MINI.replace("clip: 0.2", "clip: 0.001").replace("teacher_share: 0.2", "teacher_share: 0.0")
    found = made(tmp_path, "minillm", talks, *both, DRAWN, alone)
    clipped = {row["step"]: row["clipped"] for row in rows_of(found) if "clipped" in row}
    assert clipped[1] == 0
    assert clipped[5] == 0, "the next phase: 16 rollouts, twice, in batches of 8"
    assert clipped[3] > 0


# ── behind a server ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, teacher: Path) -> Iterator[LocalServer]:
    with LocalServer(complete=reading(core.load(teacher), load(teacher))) as started:
        started.name_it(monkeypatch)
        yield started


SERVED = ("teacher=endpoint:local", "block=null", "endpoint.retries=1", "endpoint.back_off=0.01")


def test_a_teacher_behind_a_server_is_nearly_one_in_memory(
    live: Artifact, student: Path, talks: Path, tmp_path: Path, server: LocalServer
) -> None:
    learner = f"student.weights=dir:{student}", "student.shape=null"
    found = made(tmp_path, "live", talks, *learner, *SERVED, "top_k=400")
    losses, others = ([row["divergence"] for row in rows_of(one) if "divergence" in row] for one in (live, found))
    assert others == pytest.approx(losses, rel=2e-3)
    # 6 steps of 8 rows over 32 rows: what comes a second time was kept.
    asked = [tuple(body["prompt"]) for body in server.requests]
    assert len(asked) == len(set(asked)) == 32
    assert not list(found.path.rglob("journal*"))


def test_a_server_that_drops_half_way_names_the_row_and_the_run_goes_on(
    student: Path, talks: Path, tmp_path: Path, server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    line = distilling.line(
        tmp_path, "live", talks, f"student.weights=dir:{student}", "student.shape=null", *SERVED, "top_k=5"
    )
    # The third step's first row finds nobody.
    server.faults.extend([None] * 16)
    server.faults.extend([status(503, "gone")] * 100)
    assert run.door(line) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "gave no usable answer in 2 attempts" in said
    assert re.search(r"\bc\d+: endpoint:local", said), said
    server.faults.clear()
    assert run.door(line) == 0
    asked = [tuple(body["prompt"]) for body in server.requests]
    failed = len(asked) - len(set(asked))
    assert 1 <= failed <= 16, "nothing that was answered is asked again"
    assert run.door([*line, "objective.temperature=2.0"]) == 2
    assert "at temperature 1" in capsys.readouterr().err


# ── going on ─────────────────────────────────────────────────────────────────────────────────────

MODES = {
    "live": ("block=null",),
    "on_policy": ("drawing={share: 0.5, temperature: 1.0, max_new_tokens: 8}",),
    "minillm": (DRAWN, MINI),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [3, 5])
def test_a_run_that_breaks_off_goes_on_to_the_same_bits(
    mode: str, at: int, both: tuple[str, ...], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "whole", mode, talks, *both, *MODES[mode])
    original = distilled.DistillTrainer.compute_loss

    def breaking(self: distilled.DistillTrainer, *arguments: object, **named: object) -> object:
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(distilled.DistillTrainer, "compute_loss", breaking)
    assert run.door([*distilling.line(tmp_path / "broken", mode, talks, *both, *MODES[mode]), "name=distill"]) == 130
    monkeypatch.setattr(distilled.DistillTrainer, "compute_loss", original)
    again = made(tmp_path / "broken", mode, talks, *both, *MODES[mode])
    assert again.notes["resumed_from_step"] == at - 1
    assert again.files["model.safetensors"] == whole.files["model.safetensors"]
    timed = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows_of(again)] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows_of(whole)
    ]


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mode", "more", "told"),
    [
        ("live", ("teacher=null",), "mode=live teacher=None"),
        ("offline", ("teacher=mini:base",), "mode=offline teacher=mini:base"),
        ("live", (DRAWN,), "drawing={…}"),
        ("on_policy", (MINI,), "minillm={…}"),
        ("live", ("objective.beta=0.5",), "objective.beta=0.5"),
        ("live", ("objective.divergence=jsd",), "objective.beta=None"),
        ("minillm", ("objective.divergence=forward_kl",), "minimises the reverse KL"),
        ("minillm", ("minillm.rollouts=50",), "no multiple of optimisation.batch"),
        ("minillm", ("server.url=http://localhost:8000",), "drawn here"),
        ("minillm", ("drawing.share=0.5",), "all answers are drawn"),
        ("live", ("adapter.kind=lora",), "nothing to adapt"),
        ("live", ("top_k=5",), "top_k=5"),
        ("live", ("student.weights=mini:base", "student.tokenizer=mini:tokenizer"), "have their own"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    mode: str, more: tuple[str, ...], told: str, root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = distilling.line(tmp_path, mode, distilling.texts(tmp_path / "texts"), *more)
    if told == "top_k=5":
        line += [f"teacher=dir:{distilling.student(tmp_path / 'student')}"]
    assert run.door(line) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "solo").exists() or not list((tmp_path / "solo").glob("*/artifact.json"))


def test_another_tokenizer_is_refused_with_an_explanation(
    student: Path, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = rewarding.policy(tmp_path / "other", pieces=420)
    line = distilling.line(
        tmp_path, "live", talks, f"student.weights=dir:{student}", "student.shape=null", "block=null"
    )
    assert run.door([*line, f"teacher=dir:{other}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "another tokenizer than the student" in said
    assert "another method" in said


def test_a_teacher_that_gives_no_numbers_is_named_with_its_rows(
    student: Path, teacher: Path, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = core.load(teacher)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    broken = tmp_path / "broken"
    shutil.copytree(teacher, broken, ignore=shutil.ignore_patterns("artifact.json"))
    core.save(model, broken, stop_ids=[1, 107])
    line = distilling.line(
        tmp_path, "live", talks, f"student.weights=dir:{student}", "student.shape=null", "block=null"
    )
    assert run.door([*line, f"teacher=dir:{broken}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the teacher gives values that are no numbers, in the rows c" in said


def test_a_teacher_that_is_smaller_than_its_student_is_told_of(
    student: Path, teacher: Path, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for learner, other, told in ((teacher, student, True), (student, teacher, False)):
        line = distilling.line(tmp_path, "live", talks, f"student.weights=dir:{learner}", "student.shape=null")
        assert run.door([*line, f"teacher=dir:{other}", "block=null", "optimisation.steps=1"]) == 0
        assert ("the teacher is smaller than its student" in capsys.readouterr().out) == told


def test_a_prompt_that_leaves_no_room_is_named(
    both: tuple[str, ...], talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "drawing={share: 1.0, temperature: 1.0, max_new_tokens: 90}"
    assert run.door(distilling.line(tmp_path, "on_policy", talks, *both, long)) == 2
    assert "drawing.max_new_tokens=90 are for the answer" in " ".join(capsys.readouterr().err.split())
