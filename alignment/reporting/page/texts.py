"""What models said: samples side by side, those of suites too, a short one for who points at a figure, and variety."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.reporting import examples, fronts
from alignment.reporting.examples import Shown
from alignment.reporting.page import examined
from alignment.reporting.page.examined import Found
from alignment.reporting.page.gather import Lineage, Node, Row
from alignment.reporting.page.models import Measured, measure_of, told

ANSWERS, FRONT, SAMPLES = "answers.parquet", "front.jsonl", "samples.jsonl"
LONGEST = 1_200
"""Characters of a text that the page holds."""
SHORT = 160
OF_SUITE = 12
"""Examples of a suite that the page shows."""
LOOKS = 9
"""Steps of a run whose answers can be chosen."""
NO_SCORES = {"model", "id", "tags", "prompt", "answer", "tokens", "finished", "logprob", "step"}
"""Of an answer's row; everything else in it is a score."""


class Said(NamedTuple):
    """One model, or one step of a run: answers by the key of their prompt."""

    key: str
    name: str
    group: str
    answers: Mapping[str, Mapping[str, Any]]


class Texts(NamedTuple):
    """Prompts by key, and who answered them."""

    prompts: Mapping[str, Mapping[str, Any]]
    said: Sequence[Said]

    def values(self) -> dict[str, Any]:
        """As the page's script reads them."""
        return {"prompts": self.prompts, "said": [one._asdict() for one in self.said]}


class Spoken(NamedTuple):
    """What figures need of a model's answers: a short sample, and the shares of different words and word pairs."""

    sample: str
    words: float | None
    pairs: float | None
    answers: float | None


def answers_of(rows: Sequence[Measured]) -> dict[str, list[Row]]:
    """The answers of every row of the closing table, by its key; an arm has none of its own."""
    found: dict[str, list[Row]] = {}
    for evaluation in {row.evaluation.fingerprint: row.evaluation for row in rows}.values():
        by_name: dict[str, list[Row]] = {}
        for answer in evaluation.rows(ANSWERS):
            by_name.setdefault(answer["model"], []).append(answer)
        for row in rows:
            if row.evaluation is evaluation and row.name in by_name and row.model is not None:
                found[row.key] = by_name[row.name]
    return found


def looks(run: Node) -> dict[int, list[Row]]:
    """The answers of a run by step, at some of its looks at held-out prompts."""
    by_step: dict[int, list[Row]] = {}
    for row in run.rows(SAMPLES):
        by_step.setdefault(row["step"], []).append(row)
    kept = {point["step"] for point in fronts.some([{"step": step} for step in by_step], LOOKS)}
    return {step: rows for step, rows in by_step.items() if step in kept}


def gathered(rows: Sequence[Measured], answers: Mapping[str, Sequence[Row]], lineage: Lineage, most: int) -> Texts:
    """``most`` prompts of those that were asked in evaluations, spread over their tags; all that runs kept."""
    kept = _chosen(answers.values(), most)
    prompts: dict[str, Mapping[str, Any]] = {}
    said: list[Said] = []
    for row in rows:
        texts = {answer["id"]: answer for answer in answers.get(row.key, ()) if answer["id"] in kept}
        for key, answer in texts.items():
            turns = [[turn["role"], _cut(turn["content"])] for turn in answer["prompt"]]
            prompts.setdefault(key, {"turns": turns, "tags": list(answer["tags"])})
        if texts:
            group = lineage.name(row.evaluation.fingerprint)
            said.append(Said(row.key, row.name, group, {key: _answer(one) for key, one in texts.items()}))
    _of_suites(examined.suites(lineage), min(most, OF_SUITE), prompts, said)
    for run in lineage.of_stage("rl"):
        for step, looked in looks(run).items():
            for one in looked:
                prompts.setdefault(f"text {one['prompt']}", {"turns": [["user", _cut(one["prompt"])]], "tags": []})
            name = lineage.name(run.fingerprint)
            texts = {f"text {one['prompt']}": _answer(one) for one in looked}
            said.append(Said(f"{run.fingerprint[:8]} {step}", f"{name}, step {step:,}", f"along {name}", texts))
    order = [key for key in kept if key in prompts] + [key for key in prompts if key not in kept]
    return Texts({key: prompts[key] for key in order}, said)


def _of_suites(found: Sequence[Found], most: int, prompts: dict[str, Mapping[str, Any]], said: list[Said]) -> None:
    """A few examples of every suite: what was asked joins ``prompts``, and what every model answered ``said``."""
    read: dict[Path, dict[str, dict[str, Shown]]] = {}
    for one in found:
        by_model: dict[str, dict[str, dict[str, Any]]] = {}
        for label, node in one.nodes.items():
            path = node.file(examples.FILE)
            if path is None:
                continue
            shown = read[path] = read.get(path) or examples.some(path, most, suite=one.name, model=label)
            for name, example in shown.get(one.name, {}).items():
                key = f"{one.where} {name}"
                turns = [[role, _cut(text)] for role, text in example.turns]
                prompts.setdefault(key, {"turns": turns, "tags": [one.name, *example.labels]})
                for model, answer in example.said.items():
                    by_model.setdefault(model, {})[key] = _counted(answer)
        said += [Said(f"{one.where} {model}", model, one.where, answers) for model, answers in by_model.items()]


def _counted(answer: examples.Said) -> dict[str, Any]:
    scores = [[measure, float(f"{value:.3g}")] for measure, value in answer.values.items()]
    return {"text": _cut(answer.text), "scores": scores}


def spoken(answers: Sequence[Row]) -> Spoken:
    """A short sample of a model's answers, and how varied they all are."""
    texts = [answer["answer"] for answer in answers]
    sample = short(_asked(answers[0]), texts[0]) if answers else ""
    return Spoken(sample, distinct(texts, 1), distinct(texts, 2), len({*texts}) / len(texts) if texts else None)


def short(prompt: str, answer: str) -> str:
    """A prompt and an answer in few lines, as plain text."""
    lines = [f"“{_brief(prompt)}”", f"→ {_brief(answer) or '(nothing)'}"]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 60))


def distinct(texts: Sequence[str], length: int) -> float | None:
    """The share of runs of ``length`` words that are different ones (distinct-n, Li et al., arXiv 1510.03055).

    It falls as more text is counted: only equal numbers of answers to the same prompts compare.
    """
    runs: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        runs.update(tuple(words[place : place + length]) for place in range(len(words) - length + 1))
    return len(runs) / runs.total() if runs else None


def _chosen(answers: Any, most: int) -> list[str]:
    """Ids of prompts: those that most models answered first, then a first of every tag, a second of every tag …"""
    times: Counter[str] = Counter()
    tags: dict[str, str] = {}
    for rows in answers:
        for row in rows:
            times[row["id"]] += 1
            tags.setdefault(row["id"], next(iter(row["tags"]), ""))
    if not times:
        return []
    common = [key for key in times if times[key] == max(times.values())]
    queues: dict[str, list[str]] = {}
    for key in common:
        queues.setdefault(tags[key], []).append(key)
    turns = [(turn, place, key) for place, queue in enumerate(queues.values()) for turn, key in enumerate(queue)]
    others = [key for key in times if times[key] < max(times.values())]
    return [*(key for _, _, key in sorted(turns)), *others][:most]


def _answer(row: Row) -> dict[str, Any]:
    known = {name: value for name, value in row.items() if name not in NO_SCORES and value is not None}
    scores = [[told(_measure(name)), float(f"{value:.3g}")] for name, value in known.items()]
    answer: dict[str, Any] = {"text": _cut(row["answer"]), "scores": scores}
    if "tokens" in row:
        answer |= {"tokens": row["tokens"], "finished": row["finished"]}
    return answer


def _measure(name: str) -> str:
    """Runs call a scorer as it was named to them, evaluations by its measure."""
    return measure_of(name) if ":" in name else name


def _asked(row: Row) -> str:
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHORT else text[: SHORT - 2] + " …"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
