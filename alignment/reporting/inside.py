"""What is inside an artifact: a model's shapes, a dataset's rows with their loss mask, an evaluation's table."""

from __future__ import annotations

import json
from typing import Any

from alignment import console
from alignment.artifacts import Artifact
from alignment.chat import render, show, tokenizers
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Comparison, Conversation, Message, Prompt
from alignment.data import store as datasets
from alignment.store import Store


def model(artifact: Artifact) -> None:
    """Print the shape table and the parameter counts; no weight is read."""
    from alignment.gemma import core
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
    console.table("model", ("", ""), ((name, "–" if value is None else value) for name, value in rows))


def dataset(artifact: Artifact, examples: int, store: Store) -> None:
    """Print rows by split and source, what the ledger says, and examples coloured by loss mask."""
    card = datasets.card(artifact.path)
    console.say()
    rows = [(split, f"{count:,}") for split, count in card["rows"].items()]
    console.table(f"{card['kind']}", ("split", "rows"), rows, right=("rows",))
    console.say()
    fates = ("kept", "changed", "flagged", "dropped", "not_drawn")
    lines = [
        (name, source["licence"], f"{source['read']:,}", *(f"{source['fates'].get(fate, 0):,}" for fate in fates))
        for name, source in card["sources"].items()
    ]
    console.table("ledger", ("source", "licence", "read", *fates), lines, right=("read", *fates))
    reasons = [
        (name, reason, f"{count:,}")
        for name, source in card["sources"].items()
        for reason, count in source["reasons"].items()
    ]
    if reasons:
        console.say()
        console.table("dropped because", ("source", "reason", "rows"), reasons, right=("rows",))
    if examples:
        _examples(artifact, card, examples, store)


def evaluation(artifact: Artifact) -> None:
    """Print every measure with its interval, and gold by skill where there is gold."""
    results = json.loads((artifact.path / "results.json").read_text())
    rows = [
        (name, measure, f"{one['estimate']:.3f}", f"{one['low']:.3f} … {one['high']:.3f}")
        for name, measures in results["models"].items()
        for measure, one in measures.items()
    ]
    console.say()
    title = f"measures with {results['confidence']:.0%} intervals"
    console.table(title, ("model", "measure", "mean", "interval"), rows, right=("mean",))
    for name, skills in results["skills"].items():
        console.say()
        lines = [(skill, f"{value:.3f}") for skill, value in skills.items()]
        console.table(f"gold by skill: {name}", ("skill", "gold"), lines, right=("gold",))


def _examples(artifact: Artifact, card: dict[str, Any], count: int, store: Store) -> None:
    tokenizer = _a_tokenizer(store)
    split = next(iter(card["rows"]))
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
    def turns(messages: tuple[Message, ...]) -> str:
        return "\n".join(f"{turn.role}: {turn.content}" for turn in messages)

    if isinstance(row, Conversation | Prompt):
        return turns(row.messages)
    if isinstance(row, Comparison):
        return f"{turns(row.prompt)}\n  chosen ({row.grade} better): {row.chosen}\n  rejected: {row.rejected}"
    return row.text
