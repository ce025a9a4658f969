"""What is inside an artifact: a model's shapes, a dataset's rows with their loss mask, an evaluation's table."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from alignment import console
from alignment.artifacts import Artifact
from alignment.chat import render, show, tokenizers
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Comparison, Conversation, Messages, Prompt
from alignment.data import pairs
from alignment.data import store as datasets
from alignment.reporting import card, evaluations, front_tables, judges, perplexities, samples, side_by_side, suites
from alignment.store import Store

if TYPE_CHECKING:
    from alignment.gemma.heads import Scale

FIGURES = ("plots.html", "side_by_side.html")


def model(artifact: Artifact) -> None:
    """Print the shape table and the parameter counts, and how a reward model's scores are read; no weight is read."""
    from alignment.gemma import core, heads
    from alignment.gemma.presets import parameter_counts

    config = core.read_config(artifact.path)
    shape = core.shape_of(config)
    counts = parameter_counts(shape, config.vocab_size)
    rows: list[tuple[str, Any]] = [(name, getattr(shape, name)) for name in shape.__dataclass_fields__]
    rows += [
        ("vocabulary", f"{config.vocab_size:,}"),
        ("embedding parameters", f"{counts.embedding:,}"),
        ("other parameters", f"{counts.non_embedding:,}"),
        ("parameters", f"{sum(counts):,}"),
        ("on disk", f"{sum(p.stat().st_size for p in artifact.path.glob('*.safetensors')) / 2**20:,.1f} MiB"),
    ]
    console.say()
    reward = heads.is_reward(artifact.path)
    if reward:
        rows += _scale(heads.read_scale(artifact.path), shape.width)
    title = "reward model" if reward else "model"
    console.table(title, ("", ""), ((name, "–" if value is None else value) for name, value in rows))


def _scale(scale: Scale | None, width: int) -> list[tuple[str, Any]]:
    """How scores are read; of a model that is not ours nothing says it."""
    head = ("head", f"{width:,} → 1, without a bias")
    if scale is None:
        return [head, ("scores", "not centred; they know only differences, as far as is known")]
    threshold = "mean something by themselves" if scale.absolute else "know only differences: no threshold of their own"
    return [head, ("centre", f"{scale.centre:.4g}"), ("scores", threshold), ("schema", scale.schema)]


def dataset(artifact: Artifact, examples: int, store: Store) -> None:
    """Print the data card, what an attack on a model came to, and examples coloured by loss mask."""
    console.say()
    card.show(artifact, store)
    if artifact.stage == "redteam":
        suites.show_one(json.loads((artifact.path / "results.json").read_text()))
        samples.of_suites(artifact)
    if examples:
        _examples(artifact, datasets.card(artifact.path), examples, store)


def answers(artifact: Artifact, examples: int) -> None:
    """Print how many pairs there are to judge, who wrote them, and examples."""
    told = datasets.card(artifact.path)
    console.say()
    rows = [(split, f"{count:,}") for split, count in told["rows"].items()]
    rows += [(f"not to judge: {why}", f"{count:,}") for why, count in told["why"].items()]
    console.table("pairs of answers", ("", ""), rows)
    for pair in islice((pair for pair in pairs.stream(artifact.path) if not pair.why), examples):
        console.say()
        console.console().print(_turns(pair.prompt), markup=False)
        for side in ("a", "b"):
            model, answer = getattr(pair, f"model_{side}"), getattr(pair, f"answer_{side}")
            console.console().print(f"  {side} ({model}): {answer}", markup=False)


def evaluation(artifact: Artifact) -> None:
    """Print every measure with its interval, and gold by skill where there is gold; of judges, their tables.

    Of suites also a few examples, those that a judge could not read first.
    """
    if (artifact.path / "fronts.json").is_file():
        front_tables.show(json.loads((artifact.path / "fronts.json").read_text()))
        return
    if (artifact.path / "report.html").is_file():
        console.say()
        console.say(f"a page, for a browser: {artifact.path / 'report.html'}", style="dim")
        return
    results = json.loads((artifact.path / "results.json").read_text())
    if "judges" in results:
        judges.show(results)
        return
    if "side_by_side" in results:
        side_by_side.show(results)
        side_by_side.samples(artifact.path / "examples.parquet")
        return
    if "shares" in results:
        perplexities.show(results)
        return
    if "declared" in results:
        suites.show_one(results)
    else:
        evaluations.show(results)
    samples.of_suites(artifact)


def figures(artifact: Artifact) -> None:
    """Print where the page of figures is, of what has one."""
    for page in (artifact.path / name for name in FIGURES):
        if page.is_file():
            console.say()
            console.say(f"figures, for a browser: {page}", style="dim")


def _examples(artifact: Artifact, told: dict[str, Any], count: int, store: Store) -> None:
    tokenizer = _a_tokenizer(store)
    split = next(iter(told["rows"]))
    console.say()
    legend = "trained tokens bold green, seen ones dim" if tokenizer else "no tokenizer in the store yet: shown as text"
    console.say(f"[bold]examples[/bold] of {split}: {legend}")
    for place, row in enumerate(datasets.stream(artifact.path, split)):
        if place == count:
            break
        console.say()
        if tokenizer is not None and isinstance(row, Conversation):
            rendered = render.render(row.messages, tokenizer, train=row.train)
            console.console().print(show.coloured(rendered.ids, rendered.mask, tokenizer))
        else:
            console.console().print(_plainly(row), markup=False)


def _a_tokenizer(store: Store) -> Tokenizer | None:
    """The tokenizer of the newest artifact that has one, to show tokens with."""
    for artifact in reversed(store.finished()):
        if artifact.tokens is not None:
            return tokenizers.load(artifact.path)
    return None


def _plainly(row: Any) -> str:
    if isinstance(row, Conversation | Prompt):
        return _turns(row.messages)
    if isinstance(row, Comparison):
        grade = {None: "not graded", "better": "better"}.get(row.grade, f"{row.grade} better")
        return f"{_turns(row.prompt)}\n  chosen ({grade}): {row.chosen}\n  rejected: {row.rejected}"
    return row.text


def _turns(messages: Messages) -> str:
    return "\n".join(f"{turn.role}: {turn.content}" for turn in messages)
