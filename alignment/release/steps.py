"""How a model was made, for its card: every step of its lineage, and the settings that say most about each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignment.energy.record import Total, total
from alignment.release.descent import Node

STEPS: dict[str, str] = {
    "data": "rows by a recipe",
    "tokenizer": "a SentencePiece tokenizer",
    "pretrain": "trained on plain text",
    "sft": "fine-tuned on conversations, with loss on the answers alone",
    "distill": "distilled from a teacher's distribution",
    "teach": "answers of a teacher to prompts",
    "ghost": "answers under an instruction in every turn, kept in the first turn only (Ghost Attention)",
    "preprompt": "answers with a safety pre-prompt, the safer ones kept without it",
    "pairs": "pairs of answers to compare",
    "label": "comparisons with grades",
    "reward": "a reward model, from comparisons",
    "reject": "the best of K answers by a reward (rejection sampling)",
    "rl": "reinforcement learning from rewards, held to an anchor",
    "dpo": "preferences learned directly (DPO)",
    "merge": "an average of models' weights",
    "export": "a release in another precision",
}
MATTER: dict[str, tuple[str, ...]] = {
    "pretrain": ("model.shape", "optimisation.steps", "optimisation.batch", "optimisation.learning_rate", "seed"),
    "sft": (
        "adapter.kind",
        "optimisation.steps",
        "optimisation.epochs",
        "optimisation.batch",
        "optimisation.learning_rate",
        "seed",
    ),
    "distill": (
        "mode",
        "objective.divergence",
        "objective.temperature",
        "objective.nll_weight",
        "drawing.share",
        "minillm.teacher_share",
        "optimisation.steps",
        "optimisation.batch",
        "optimisation.learning_rate",
        "seed",
    ),
    "reward": (
        "margins",
        "adapter.kind",
        "optimisation.steps",
        "optimisation.epochs",
        "optimisation.batch",
        "optimisation.learning_rate",
        "seed",
    ),
    "dpo": ("beta", "optimisation.steps", "optimisation.epochs", "optimisation.learning_rate", "seed"),
    "rl": (
        "estimating.kind",
        "anchoring.kind",
        "anchoring.beta",
        "anchoring.rate",
        "reward.rule",
        "updating.steps",
        "updating.batch",
        "updating.learning_rate",
        "drawing.samples",
        "drawing.temperature",
        "drawing.max_new_tokens",
        "seed",
    ),
    "merge": ("method", "weights", "eta", "rate", "groups"),
    "teach": ("decoding.temperature", "decoding.samples", "decoding.max_new_tokens", "unfinished"),
    "reject": ("samples", "temperatures", "count", "pool"),
    "label": ("ties",),
    "tokenizer": ("pieces",),
}
"""By stage: the settings that say most about what was done; those that a stage does not have are left out."""


def how(nodes: Sequence[Node]) -> str:
    """Every step, parents first."""
    lines = []
    for number, node in enumerate((node for node in nodes if node.ours), 1):
        what = STEPS.get(node.artifact.stage, node.artifact.stage)
        if node.artifact.stage == "data" and "kind" in node.artifact.notes:
            what = f"{node.artifact.notes['kind']} by a recipe"
        lines.append(
            (number, node.name, node.artifact.stage, what, _parents(node, nodes), node.artifact.fingerprint[:8])
        )
    columns = ("", "step", "stage", "what it is", "made from", "fingerprint")
    others = [
        f"- {node.label}: {'; '.join(f'{use.key} of {use.step}' for use in node.uses) or 'the model itself'}"
        for node in nodes
        if not node.ours
    ]
    told = "\n\nNot made here:\n\n" + "\n".join(others) if others else ""
    made = table(columns, lines) if lines else "None of it was made here, but for the files of this release."
    return "## How it was made\n\n" + made + told


def _parents(node: Node, nodes: Sequence[Node]) -> str:
    """``data conversations, model.weights base``."""
    names = {other.artifact.fingerprint: other.name for other in nodes}
    parts = [
        f"{key} *{names[parent.fingerprint]}*"
        for key, parent in node.artifact.parents.items()
        if parent.fingerprint in names
    ]
    return ", ".join(parts) or "–"


def settings(nodes: Sequence[Node]) -> str:
    """What was chosen where it matters; empty where nothing was."""
    lines = []
    for node in nodes:
        if node.ours:
            told = [f"{key} {_plain(value)}" for key, value in _that_matter(node)]
            if told:
                lines.append((node.name, node.artifact.stage, ", ".join(told)))
    return "## Settings that matter\n\n" + table(("step", "stage", "settings"), lines) if lines else ""


def _that_matter(node: Node) -> Iterator[tuple[str, Any]]:
    for key in MATTER.get(node.artifact.stage, ()):
        value: Any = node.artifact.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            yield key, value


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def energy(nodes: Sequence[Node]) -> str:
    """What every step took, the sum, and what is not in it."""
    took = [(node.name, node.artifact.energy) for node in nodes if node.ours and node.artifact.energy is not None]
    if not took:
        return "## Energy\n\nNo record of the lineage tells what it took."
    summed = of_lineage(nodes)
    lines = [
        (name, one.hardware, *map(_amount, (one.device_hours, one.kwh, one.kg_co2eq)), one.how) for name, one in took
    ]
    columns = ("step", "device", "device-hours", "kWh", "kg CO₂eq", "how it is known")
    grids = sorted({one.grid_kg_per_kwh for _, one in took if one.grid_kg_per_kwh is not None})
    factor = f" CO₂eq is reckoned with {' and '.join(map(str, grids))} kg for each kWh." if grids else ""
    return (
        f"## Energy\n\nIn all: {summed.text}.{factor} Not in it: {'; '.join(summed.excludes)}; nor what was not made "
        "here.\n\n" + table(columns, lines)
    )


def of_lineage(nodes: Sequence[Node]) -> Total:
    """The sum over all that was made here, and that is gone."""
    return total(node.artifact.energy for node in nodes if node.ours or node.gone)


def _amount(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def table(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
