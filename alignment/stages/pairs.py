"""Have two model variants answer the same prompts, for somebody to say which answer is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment import console, files
from alignment.artifacts import Artifact, Outcome
from alignment.data.rows import Split
from alignment.evals.drawn_pairs import VARIANTS, check, variant_names
from alignment.sampling.endpoint import EndpointSettings
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings

ALGORITHM_VERSION = 1
PROMPTS_A_PART = 256


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
        check(settings.temperatures, settings.splits)
        return settings


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Write a line for every prompt (pairs.parquet), those with nothing to judge included, and the card."""
    from alignment.data import pairs, store
    from alignment.evals import drawn_pairs
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    models = [inputs[f"models.{place}"] for place in VARIANTS]
    prompts = inputs["prompts"].need("dataset").path
    asked = drawn_pairs.Asked(prompts, settings.splits, settings.count)
    drawing = drawn_pairs.Drawing(settings.temperatures, settings.top_p, settings.max_new_tokens, settings.seed)
    total = drawn_pairs.draw_all(models, asked, drawing, engine, settings.endpoint, out, PROMPTS_A_PART)
    names = variant_names(models, settings.temperatures)
    rows: Counter[str] = Counter()
    whys: Counter[str] = Counter()
    finished = 0
    table = store.Table(out / pairs.TABLE, pairs.SCHEMA)
    try:
        for pair in drawn_pairs.stream(names, asked, drawing, out, PROMPTS_A_PART):
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
        "not_drawn": _not_drawn(prompts, rows),
        "policies": policies,
        "licences": sorted({licence for artifact in inputs.values() for licence in artifact.licences}),
        "made_by": "pairs",
        "world": store.shared_world([prompts]),
    }
    files.write_json(out / store.CARD, card)
    metrics = {"pairs": float(total), "to_judge": float(judged), "finished_share": finished / (2 * total)}
    metrics |= {why.replace(" ", "_"): float(count) for why, count in whys.items()}
    return Outcome("answers", metrics, "to_judge", notes=engine.notes() | {"policies": policies})


def _not_drawn(prompts: Path, rows: Mapping[str, int]) -> dict[str, int]:
    """Prompts that nobody was asked, by split: those beyond ``count``, and those of other splits."""
    from alignment.data import store

    left = {split: there - rows.get(split, 0) for split, there in store.card(prompts)["rows"].items()}
    left = {split: count for split, count in left.items() if count}
    if left:
        told = ", ".join(f"{count:,} of {split}" for split, count in left.items())
        console.say(f"  prompts that are not drawn for: {told}", style="dim")
    return left
