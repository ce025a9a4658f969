"""What is counted of a pair is what its judge reads: up to the context it is judged, one token more and it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rewarding

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.chat import tokenizers
from alignment.chat.render import prompt_ids
from alignment.chat.types import Comparison, Message, Messages
from alignment.errors import UserError
from alignment.evals import fitting
from alignment.evals.fitting import Reader
from alignment.gemma import core, heads
from alignment.gemma.heads import Scale
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring.llm_judge import RUBRICS, LlmJudge
from alignment.scoring.reward_model import RewardScorer
from alignment.training import policies
from alignment.training.engine import Engine, EngineSettings

CONTEXT = rewarding.SHAPE.context


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewarding.policy(tmp_path_factory.mktemp("fitting"))


@pytest.fixture(scope="module")
def reward(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A reward model that closes answers with one token, and whose context is that of the policy."""
    folder = tmp_path_factory.mktemp("fitting_reward")
    policies.save_tokenizer(tokenizers.load(policy), "gemma1", folder)
    heads.save_reward(heads.with_head(core.load(policy), 0), folder, Scale(0.0, False, "gemma1"))
    tokens = artifacts.Tokens("", 0, 0, "gemma1")
    return Artifact(folder, "reward", "reward", "helpful", "2" * 64, tokens=tokens)


def of_length(tokens: int, reader: Reader, side: str) -> Comparison:
    """A pair one of whose answers is such that the pair has so many tokens."""
    for words in range(2 * tokens):
        row = rewarding.comparison(0, id=str(tokens), **{side: "the baker" + "!" * words})
        if reader.tokens(row) == tokens:
            return row
    raise AssertionError("no answer is so long")


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_reward_model_scores_what_fits_and_nothing_longer(side: str, reward: Artifact, monkeypatch: Any) -> None:
    reader = Reader.of(reward, "")
    assert reader is not None
    assert (reader.context, reader.schema, reader.rubric) == (CONTEXT, "gemma1", None)
    fits, longer = (of_length(tokens, reader, side) for tokens in (CONTEXT, CONTEXT + 1))
    scorer = RewardScorer.load(reward, Engine("cpu", False, False, 1, engine_settings()))
    scorer.score([dialogue(fits, answer) for answer in (fits.chosen, fits.rejected)])
    with pytest.raises(UserError, match=f"has {CONTEXT + 1} tokens"):
        scorer.score([dialogue(longer, answer) for answer in (longer.chosen, longer.rejected)])
    found = fitting.unseen("d", [fits, longer, fits], {"helpful": reader})
    assert {place: [one.tokens for one in some] for place, some in found.items()} == {1: [CONTEXT + 1]}


def engine_settings() -> EngineSettings:
    plain = {"device": "cpu", "precision": "fp32", "micro_batch": None, "layout": "auto"}
    return EngineSettings.parse(
        {
            **plain,
            "gradient_checkpointing": False,
            "processes": "any",
            "zero": 0,
            "offload": False,
            "gather": True,
            "loss_chunk": 64,
            "watchdog_minutes": None,
        }
    )


def dialogue(row: Comparison, answer: str) -> Messages:
    return (*row.prompt, Message("assistant", answer))


class Listener:
    """Keeps what a judge asks for."""

    name = "listener"

    def __init__(self) -> None:
        self.asked: list[Messages] = []
        self.room = 0

    def reply(
        self, prompts: Sequence[Messages], keys: Sequence[str], decoding: Decoding, on_progress: Any = None
    ) -> list[list[Reply]]:
        self.asked += prompts
        self.room = decoding.max_new_tokens
        return [[Reply("no form", 2, True)] for _ in prompts]


@pytest.mark.parametrize("rubric", [None, "Be strict."])
def test_a_policy_is_counted_with_the_whole_question_and_its_reply(rubric: str | None, policy: Path) -> None:
    judge = artifacts.foreign(policy, f"dir:{policy}")
    (reader,) = fitting.readers([judge], ["words"], rubric, "safety").values()
    listener, row = Listener(), replace(rewarding.comparison(1), chosen="Ha! " * 9)
    LlmJudge(listener, rubric, "safety").compare([row.prompt], [row.chosen], [row.rejected], ["p"])
    longest = max(len(prompt_ids(turns, reader.tokenizer)) for turns in listener.asked)
    assert reader.tokens(row) == longest + listener.room
    assert reader.rubric == (rubric or RUBRICS["safety"])


def test_who_is_not_read_here_is_not_counted(reward: Artifact, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["RobertaForSequenceClassification"]}')
    judges = [
        artifacts.named("gold", "safety"),
        artifacts.named("endpoint", "big"),
        artifacts.foreign(tmp_path, "dir:classifier"),
        replace(reward, kind="foreign", stage="", tokens=None),
        reward,
    ]
    labels = ["gold", "endpoint", "classifier", "theirs", "ours", "ensemble"]
    found = fitting.readers(judges, labels, None, "overall")
    assert list(found) == ["theirs", "ours"]
    assert found["theirs"].schema == "gemma2", "what nobody recorded is the family's"
    assert found["theirs"].key != found["ours"].key


def test_judges_are_counted_apart_and_told_in_the_rows_order(reward: Artifact) -> None:
    reader = Reader.of(reward, "")
    assert reader is not None
    rows = [of_length(tokens, reader, "chosen") for tokens in (60, 90, 70)]
    # Gemma 2 closes an answer with one token more.
    two = replace(reader, schema="gemma2", context=70)
    found = fitting.unseen("d", rows, {"one": replace(reader, context=70), "two": two})
    told = {place: [(one.judge, one.id, one.tokens) for one in some] for place, some in found.items()}
    assert told == {1: [("one", "90", 90), ("two", "90", 91)], 2: [("two", "70", 71)]}
