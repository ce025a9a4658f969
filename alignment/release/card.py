"""The model card, README.md: front matter as the hub reads it, and a body that the lineage fills.

Everything in it is a fact of the records, and the same records give the same card: no date, no path, and of machines
what their devices are called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from alignment.release import descent, gemma_terms, steps
from alignment.release.descent import Node
from alignment.release.evaluations import Evaluation
from alignment.release.licences import FILE as LICENSE
from alignment.release.licences import Licence
from alignment.release.proof import EXACT, LENGTH, Proof
from alignment.release.provenance import Provenance
from alignment.release.weights import Dtype, Written

FILE = "README.md"


@dataclass(frozen=True)
class Facts:
    """What a card is made of. ``statement`` says that Gemma was modified; None for what does not descend from it."""

    name: str
    reward: bool
    family: str
    shape: Mapping[str, Any]
    nodes: tuple[Node, ...]
    provenance: Provenance
    licence: Licence
    evaluations: Sequence[Evaluation]
    dtype: Dtype
    written: Written
    proof: Proof
    statement: str | None

    @property
    def model(self) -> Node:
        """What is released."""
        return self.nodes[-1]


def write(facts: Facts) -> str:
    """The whole card."""
    parts = [
        _front_matter(facts),
        f"# {facts.name}",
        *_notices(facts),
        _what(facts),
        steps.how(facts.nodes),
        _data(facts),
        steps.settings(facts.nodes),
        _measured(facts),
        steps.energy(facts.nodes),
        _use(facts),
        _files(facts),
        _limits(facts),
        _licence(facts),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# ── front matter ─────────────────────────────────────────────────────────────────────────────────


def _front_matter(facts: Facts) -> str:
    told: dict[str, Any] = {"license": facts.licence.id}
    if facts.licence.id == "other":
        told["license_name"] = re.sub(r"[^a-z0-9.+-]+", "-", facts.licence.name.casefold()).strip("-")
        if facts.licence.text is not None:
            told["license_link"] = LICENSE
    told["library_name"] = "transformers"
    told["pipeline_tag"] = "text-classification" if facts.reward else "text-generation"
    bases = [node.reference.partition(":")[2].partition("@")[0] for node in _trunk(facts) if _on_hub(node)]
    if bases:
        told["base_model"] = bases if len(bases) > 1 else bases[0]
        told["base_model_relation"] = "merge" if facts.model.artifact.stage == "merge" else "finetune"
    if datasets := _hub_datasets(facts):
        told["datasets"] = datasets
    told["tags"] = _tags(facts)
    if emissions := _emissions(facts):
        told["co2_eq_emissions"] = emissions
    return "---\n" + yaml.safe_dump(told, sort_keys=False, allow_unicode=True) + "---"


def _trunk(facts: Facts) -> list[Node]:
    return [facts.model, *descent.trunk(facts.nodes)]


def _on_hub(node: Node) -> bool:
    return not node.ours and node.reference.startswith("hf:")


def _hub_datasets(facts: Facts) -> list[str]:
    """The hub's repositories among the sources of all recipes."""
    found = []
    for node in facts.nodes:
        for source in node.artifact.settings.get("recipe", {}).get("sources", []) if node.ours else []:
            repository = (source.get("hub") or {}).get("repository", "")
            if re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
                found.append(repository)
    return sorted(set(found))


def _emissions(facts: Facts) -> dict[str, Any]:
    """As the hub reads them, in grams, where those of every step are known."""
    summed = steps.of_lineage(facts.nodes)
    if summed.unknown or summed.kg_co2eq is None:
        return {}
    told = {"emissions": float(f"{1000 * summed.kg_co2eq:.4g}"), "source": "measured or reckoned as told under Energy"}
    return told | {"hardware_used": ", ".join(summed.device_hours)}


def _tags(facts: Facts) -> list[str]:
    tags = [facts.family, "reward-model" if facts.reward else "conversational"]
    methods = {
        "sft": "sft",
        "reward": "reward-model",
        "rl": "rlhf",
        "dpo": "dpo",
        "merge": "merge",
        "distill": "distillation",
    }
    tags += [methods[node.artifact.stage] for node in _trunk(facts) if node.artifact.stage in methods]
    return list(dict.fromkeys(tags))


# ── what has to be seen first ────────────────────────────────────────────────────────────────────


def _notices(facts: Facts) -> Iterator[str]:
    if facts.statement is not None:
        yield _quote(
            f"**{gemma_terms.SENTENCE}.**",
            f"**{facts.statement}**",
            f"Use is restricted by section 3.2 of these terms and the Gemma Prohibited Use Policy "
            f"({gemma_terms.POLICY_URL}), and these restrictions must be passed on: see [Licence](#licence).",
        )
    forbidding = [one for one in facts.provenance.origins if one.non_commercial]
    if forbidding:
        names = "; ".join(f"{one.name} ({one.licence}), {one.what} of {one.into}" for one in forbidding)
        yield _quote(f"**Non-commercial.** This model learned from what may not be used commercially: {names}.")
    if facts.provenance.unknown:
        yield _quote(
            "**Unknown licences.** This was released although nothing tells the licence of: "
            + "; ".join(facts.provenance.unknown)
            + "."
        )


def _quote(*paragraphs: str) -> str:
    return "\n>\n".join(f"> {paragraph}" for paragraph in paragraphs)


# ── what it is and how it was made ───────────────────────────────────────────────────────────────


def _what(facts: Facts) -> str:
    shape = facts.shape
    kind = (
        "A reward model: it gives a conversation that ends with an answer one score, its only logit. "
        if facts.reward
        else "A chat model. "
    )
    trunk = [node.name for node in _trunk(facts)[1:] if node.artifact.stage != "export"]
    line = " ← ".join([facts.model.name, *trunk])
    return (
        "## What it is\n\n"
        f"{kind}It has the architecture of {_families(facts.family)}: {shape['num_hidden_layers']} layers of width "
        f"{shape['hidden_size']}, {facts.written.numbers:,} parameters, a vocabulary of {shape['vocab_size']:,} and a "
        f"context of {shape['max_position_embeddings']:,} tokens.\n\n"
        f"Its weights: {line}. " + _begins(facts)
    )


def _begins(facts: Facts) -> str:
    if facts.provenance.gemma:
        return "It descends from Gemma: " + "; ".join(facts.provenance.gemma) + "."
    if facts.provenance.broken:
        return "Whether it descends from Gemma is not known: its lineage breaks off."
    last = _trunk(facts)[-1]
    if last.ours:
        return "It was trained from nothing; no part of it descends from Gemma."
    return "No part of it is known to descend from Gemma."


def _families(family: str) -> str:
    return {"gemma": "Gemma 1", "gemma2": "Gemma 2"}.get(family, family)


# ── data, settings, measures ─────────────────────────────────────────────────────────────────────


def _data(facts: Facts) -> str:
    lines = [
        (
            one.name,
            one.what,
            one.into,
            f"**{one.licence}** (non-commercial)" if one.non_commercial else one.licence or "**unknown**",
            "" if one.rows is None else f"{one.rows:,}",
        )
        for one in facts.provenance.origins
    ]
    if not lines:
        return "## Data and licences\n\nNothing with a licence of its own is recorded."
    columns = ("origin", "what it is", "used by", "licence", "rows")
    return (
        "## Data and licences\n\nEverything in the lineage that brings a licence: sources of datasets as their recipes "
        "declare them, and what was not made here.\n\n" + steps.table(columns, lines)
    )


def _measured(facts: Facts) -> str:
    if not facts.evaluations:
        return "## Measured\n\nNo evaluation of this model is recorded: nothing is known of how good or safe it is."
    parts = ["## Measured", "Of the trained weights, before they were rounded to the precision of this release."]
    for one in facts.evaluations:
        lines = [
            (measure.name, f"{measure.estimate:.4g}", f"{measure.low:.4g} … {measure.high:.4g}")
            for measure in one.measures
        ]
        columns = ("measure", "mean", f"{one.confidence:.0%} interval")
        parts.append(f"**{one.name}** (`{one.fingerprint[:8]}`): {one.how}.\n\n" + steps.table(columns, lines))
    if any(measure.name.startswith("gold") for one in facts.evaluations for measure in one.measures):
        parts.append("`gold` is the truth of the miniature world that the model learned, from 0 to 1.")
    return "\n\n".join(parts)


# ── use, files, limits, licence ──────────────────────────────────────────────────────────────────


def _use(facts: Facts) -> str:
    kind = "AutoModelForSequenceClassification" if facts.reward else "AutoModelForCausalLM"
    if facts.reward:
        call = (
            'turns = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi, what can I do?"}]\n'
            'ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)\n'
            "print(model(**ids).logits[0, 0].item())  # raw: only differences between answers to one prompt mean much"
        )
    else:
        call = (
            'turns = [{"role": "user", "content": "Hello!"}]\n'
            'ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", '
            "return_dict=True)\n"
            'answer = model.generate(**ids, max_new_tokens=256)[0, ids["input_ids"].shape[1] :]\n'
            "print(tokenizer.decode(answer, skip_special_tokens=True))"
        )
    return (
        "## Use\n\n```python\n"
        f"from transformers import AutoTokenizer, {kind}\n\n"
        'folder = "."  # this folder, or its name on the hub\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"model = {kind}.from_pretrained(folder)\n{call}\n```"
    )


def _files(facts: Facts) -> str:
    proof, exact = (
        facts.proof,
        "The folder was loaded with transformers alone and compared with the program that trained the model",
    )
    numbers = "scores" if facts.reward else "logits"
    told = [
        f"Weights are {facts.dtype} in safetensors; rounding moved them by {facts.written.rounding:.2g} of their norm. "
        "`sha256sum -c SHA256SUMS` checks every file.",
        f"{exact}: on {proof.prompts} prompts their {numbers}, of these weights in fp32, differ by at most "
        f"{proof.difference:.1g} (allowed: {EXACT:g}).",
    ]
    if proof.kl is not None and proof.same is not None:
        told.append(
            f"{proof.answers} of {proof.prompts} greedy answers (of at most {LENGTH} tokens) were equal to the letter. "
            f"Against the trained fp32 weights, logits moved by at most {proof.moved:.2g}, the mean KL is "
            f"{proof.kl:.1g} nats per token, and {proof.same:.1%} of the tokens stay the likeliest."
        )
    else:
        told.append(f"Against the trained fp32 weights, scores moved by at most {proof.moved:.2g}.")
    return "## This folder\n\n" + " ".join(told)


def _limits(facts: Facts) -> str:
    measures = {measure.name: measure for one in facts.evaluations for measure in one.measures}
    told = []
    if facts.reward:
        told += [
            "A reward model is a proxy. What is optimised against it for long gets better by its score and worse in "
            "truth; hold such training to an anchor, and look at something else beside the score.",
            "Scores of different prompts, and of other chat templates, cannot be compared.",
        ]
    else:
        told += [
            "It can state what is false with confidence, follow the biases of its data, and answer what it should "
            "refuse. Test it for the use that is meant, and filter what goes in and comes out.",
            "It knows turns of a user and a model; a system message is put before the first user turn.",
        ]
    if any(node.artifact.stage in ("rl", "reject") for node in facts.nodes):
        told.append(
            "Rewards that it was trained on, or selected by, are models or judges with errors of their own; a higher "
            "reward is no proof of better answers."
        )
    if not facts.reward:
        safety = [one for name, one in measures.items() if "safety" in name]
        told.append(
            "Safety as it was measured: "
            + ", ".join(f"{one.name} {one.estimate:.3g} ({one.low:.3g} … {one.high:.3g})" for one in safety)
            + ". That is no statement about other risks, languages or attacks."
            if safety
            else "**Its safety has not been measured.**"
        )
    told.append("Data with the licences above may hold more than they say: sources of sources are not known here.")
    return "## Limits and safety\n\n" + "\n".join(f"- {one}" for one in told)


def _licence(facts: Facts) -> str:
    if facts.statement is not None:
        return (
            f"## Licence\n\n{gemma_terms.SENTENCE}. A copy of them is in [{gemma_terms.TERMS}]({gemma_terms.TERMS}), "
            f"the notice in [{gemma_terms.NOTICE}]({gemma_terms.NOTICE}), the licence in [{LICENSE}]({LICENSE}).\n\n"
            f"#{gemma_terms.CLAUSE}"
        )
    where = f" (in full: [{LICENSE}]({LICENSE}))" if facts.licence.text is not None else ""
    return f"## Licence\n\n{facts.licence.name}{where}. The licences of what it learned from stand above."
