"""Have two model variants answer the same prompts, for somebody to say which answer is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment import console, files, parts
from alignment.artifacts import Artifact, Outcome
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.sampling.endpoint import EndpointSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.chat.types import Prompt
    from alignment.data.pairs import Pair
    from alignment.sampling.decoding import Respondent
    from alignment.training.engine import Engine

ALGORITHM_VERSION = 1
PROMPTS_A_PART = 256
VARIANTS = (0, 1)

EMPTY, EQUAL, AGAIN = "empty answer", "equal answers", "the same prompt again"


class Settings(StrictSettings):
    """``stage=pairs``. The two variants may be one model at two temperatures (Llama 2 §3.2.1)."""

    models: list[str] = reference("the two models, [a,b]; the same one twice is allowed", min_length=2, max_length=2)
    temperatures: list[float] = identity("at which each of the two answers", min_length=2, max_length=2)
    prompts: str = reference("a dataset of prompts")
    splits: list[Split] = identity("the splits whose prompts are answered; pairs stay in them", min_length=1)
    count: int | None = identity("prompts of each split at most, the first of it; null takes all", ge=1)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    seed: int = identity("of the draws, and of who stands on which side", ge=0)
    engine: EngineSettings = execution("where and how it runs")
    endpoint: EndpointSettings = execution("how a server is asked, where one answers")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Validate, each temperature and the list of splits included."""
        settings: Settings = super().parse(values, where)
        for temperature in settings.temperatures:
            if not 0 <= temperature <= 5:
                raise UserError(f"temperatures: {temperature} is not between 0 and 5")
        if len(set(settings.splits)) < len(settings.splits):
            raise UserError(f"splits: {settings.splits} names one twice")
        return settings


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a line for every prompt (pairs.parquet), those with nothing to judge included, and the card."""
    from alignment.data import pairs, store
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    models = [inputs[f"models.{place}"] for place in VARIANTS]
    prompts = inputs["prompts"].need("dataset").path
    total = _count(prompts, settings)
    for place in VARIANTS:
        _answer(place, models[place], _prompts(prompts, settings), total, settings, engine, out)
    names = variant_names(models, settings.temperatures)
    rows: Counter[str] = Counter()
    whys: Counter[str] = Counter()
    finished = 0
    table = store.Table(out / pairs.TABLE, pairs.SCHEMA)
    try:
        for pair in _pairs(prompts, names, settings, out):
            table.append(pairs.to_row(pair))
            rows[pair.split] += 1
            whys[pair.why] += 1
            finished += pair.finished_a + pair.finished_b
        table.finish()
    except BaseException:
        table.discard()
        raise
    judged = whys.pop("", 0)
    policies = [
        {"name": name, "fingerprint": model.fingerprint, "temperature": temperature}
        for name, model, temperature in zip(names, models, settings.temperatures, strict=True)
    ]
    card = {
        "kind": "answers",
        "rows": dict(rows),
        "why": dict(whys.most_common()),
        "policies": policies,
        "licences": sorted({licence for artifact in inputs.values() for licence in artifact.licences}),
        "made_by": "pairs",
        "world": store.shared_world([prompts]),
    }
    files.write_json(out / store.CARD, card)
    metrics = {"pairs": float(total), "to_judge": float(judged), "finished_share": finished / (2 * total)}
    metrics |= {why.replace(" ", "_"): float(count) for why, count in whys.items()}
    return Outcome("answers", metrics, "to_judge", notes=engine.notes() | {"policies": policies})


def variant_names(models: Sequence[Artifact], temperatures: Sequence[float]) -> list[str]:
    """What the two are called: by step; by temperature too where they are one model, by fingerprint where two."""
    plain = [model.step or model.path.name for model in models]
    if models[0].fingerprint == models[1].fingerprint:
        return [f"{name}@{temperature:g}" for name, temperature in zip(plain, temperatures, strict=True)]
    if plain[0] == plain[1]:
        return [f"{name}-{model.fingerprint[:4]}" for name, model in zip(plain, models, strict=True)]
    return plain


def _prompts(directory: Path, settings: Settings) -> Iterator[tuple[Split, Prompt]]:
    """The prompts that are answered, split by split."""
    from alignment.chat.types import Prompt
    from alignment.data import store

    for split in settings.splits:
        for row in islice(store.stream(directory, split), settings.count):
            if not isinstance(row, Prompt):
                raise UserError(
                    f"{directory} holds no prompts", remedy="Give a dataset whose recipe has kind: prompts."
                )
            yield split, row


def _count(directory: Path, settings: Settings) -> int:
    """How many prompts there are to answer; every split is looked at before a model is opened."""
    from alignment.data import store

    for split in settings.splits:
        next(_prompts(directory, settings.model_copy(update={"splits": [split]})), None)
    rows = store.card(directory)["rows"]
    return sum(min(rows[split], settings.count or rows[split]) for split in settings.splits)


def _answer(
    place: int,
    model: Artifact,
    prompts: Iterator[tuple[Split, Prompt]],
    total: int,
    settings: Settings,
    engine: Engine,
    out: Path,
) -> None:
    """Draw the answers of one variant, part by part; one model is in memory at a time."""
    from alignment.scoring.opening import open_respondent

    respondent = open_respondent(model, engine, settings.endpoint, out / parts.FOLDER / f"journal-{place}.jsonl")
    with console.progress(f"pairs {respondent.name}", total, "answers") as progress:

        def on_done(count: int, before: bool) -> None:
            if before:
                progress.begin_at(progress.done + count)

        def work(some: Sequence[tuple[Split, Prompt]]) -> parts.Rows:
            return draw(respondent, [prompt for _, prompt in some], place, settings, progress)

        for _ in parts.in_parts(out, _folder(place), prompts, PROMPTS_A_PART, work, on_done):
            pass


def draw(
    respondent: Respondent, prompts: Sequence[Prompt], place: int, settings: Settings, progress: console.Progress
) -> parts.Rows:
    """One answer to each prompt. The variant's place is in the key: one model draws two different answers."""
    from alignment.sampling.decoding import Decoding

    decoding = Decoding(
        samples=1,
        temperature=settings.temperatures[place],
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    before = progress.done
    replies = respondent.reply(
        [prompt.messages for prompt in prompts],
        [f"{prompt.id}/{place}" for prompt in prompts],
        decoding,
        on_progress=lambda done: progress.advance(before + done - progress.done),
    )
    return [{"answer": reply.text, "finished": reply.finished} for (reply,) in replies]


def _pairs(directory: Path, names: Sequence[str], settings: Settings, out: Path) -> Iterator[Pair]:
    """What both variants have answered, beside its prompt."""

    def nothing(some: Sequence[Any]) -> parts.Rows:
        raise AssertionError("every part was drawn before")

    answers = [
        parts.in_parts(out, _folder(place), _prompts(directory, settings), PROMPTS_A_PART, nothing)
        for place in VARIANTS
    ]
    last = ""
    for (split, prompt), *drawn in zip(_prompts(directory, settings), *answers, strict=True):
        pair = paired(prompt, split, drawn, names, settings)
        # A prompt that its dataset holds several times stands there several times in a row.
        yield pair if prompt.id != last else _without(pair, AGAIN)
        last = prompt.id


def paired(
    prompt: Prompt, split: Split, drawn: Sequence[Mapping[str, Any]], names: Sequence[str], settings: Settings
) -> Pair:
    """The two answers to a prompt, on sides that a hash of seed and id has shuffled."""
    from alignment.data.draw import uniform
    from alignment.data.pairs import Pair

    a, b = VARIANTS if uniform("side", settings.seed, prompt.id) < 0.5 else (1, 0)
    texts = [drawn[place]["answer"].strip() for place in VARIANTS]
    why = EMPTY if not all(texts) else EQUAL if texts[0] == texts[1] else ""
    return Pair(
        id=prompt.id,
        split=split,
        tags=prompt.tags,
        category=prompt.category,
        attack=prompt.attack,
        prompt=prompt.messages,
        answer_a=drawn[a]["answer"],
        answer_b=drawn[b]["answer"],
        model_a=names[a],
        model_b=names[b],
        temperature_a=settings.temperatures[a],
        temperature_b=settings.temperatures[b],
        finished_a=drawn[a]["finished"],
        finished_b=drawn[b]["finished"],
        why=why,
    )


def _without(pair: Pair, why: str) -> Pair:
    from dataclasses import replace

    return replace(pair, why=why)


def _folder(place: int) -> str:
    return f"variant-{place}"
