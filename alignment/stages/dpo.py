"""Train a policy on comparisons directly, without a reward model: DPO (Rafailov et al., arXiv 2305.18290)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignment import console
from alignment.artifacts import Artifact, Outcome
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference
from alignment.training.engine import EngineSettings
from alignment.training.model_settings import AdapterSettings, ModelSettings
from alignment.training.optimisation import Optimisation, disk_for, total_steps
from alignment.training.tracking import TrackerSettings

if TYPE_CHECKING:
    import numpy as np

    from alignment.data.rows import Split
    from alignment.training.engine import Engine
    from alignment.training.kept_pairs import KeptPairs
    from alignment.training.pair_rows import PairRow
    from alignment.training.policies import Policy

ALGORITHM_VERSION = 1
HELD_OUT_PAIRS = 1_000
PAIRS_A_PART = 512
CONFIDENCE = 0.95


class Settings(StrictSettings):
    """``stage=dpo``."""

    model: ModelSettings = identity("the policy to start from, and to stay near: its weights are the reference")
    data: str = reference("a dataset of comparisons")
    beta: float = identity("β: how dear it is to move away from the reference; smaller moves further", gt=0)
    too_long: Literal["refuse", "leave_out", "shorten"] = identity(
        "what becomes of a pair longer than the context; shorten drops its oldest turns; *_left_out.jsonl lists them"
    )
    max_left_out: float = identity("greatest share of the pairs that may be left out", ge=0, le=1)
    seed: int = identity("of the order of the pairs, and of a fresh adapter and its dropout", ge=0)
    adapter: AdapterSettings = identity("train all weights, or a low-rank adapter")
    optimisation: Optimisation = identity("how the model is trained; the batch is counted in pairs")
    engine: EngineSettings = execution("where and how it runs")
    tracker: TrackerSettings = execution("where its metrics go")


def disk_needed_from(settings: Settings, folders: Mapping[str, Path]) -> int:
    """Bytes for the model and its checkpoints, by its own weights where they are there already."""
    rank = None if settings.adapter.kind == "none" else settings.adapter.rank
    folder = folders.get("model.weights")
    return disk_for(settings.optimisation, settings.model.shape, folder, rank=rank)


def run(settings: Settings, inputs: dict[str, Artifact], out: Path) -> Outcome:
    """Train on the training split, measure on the validation split, write a model directory.

    The reference's log-probabilities are computed before anything is trained and kept in parts, so that one model is
    in memory, and a run that was killed goes on with what it had. An adapter is merged into the weights that are
    written, and also kept beside them in ``adapter/``.
    """
    import torch

    from alignment.chat.types import prompt_key
    from alignment.data import seen
    from alignment.training import policies, snapshots
    from alignment.training.engine import resolve

    engine = resolve(settings.engine)
    snapshots.need_whole_models(settings.optimisation.snapshots, settings.adapter.kind)
    policy = _begin(settings, inputs, engine)
    learned = _pairs(inputs["data"], "train", policy, settings, out)
    # Says what is wrong with the numbers before the reference is asked.
    total_steps(settings.optimisation, len(learned))
    held = _pairs(inputs["data"], "valid", policy, settings, out)[:HELD_OUT_PAIRS]
    reference_PA = _reference(policy, learned, "train", engine, out)
    held_reference_PA = _reference(policy, held, "valid", engine, out)
    if settings.adapter.kind != "none":
        torch.manual_seed(settings.seed)
        policy = policies.adapt(policy, settings.adapter)
    notes, metrics = _train(policy, learned, reference_PA, settings, inputs, engine, out)
    metrics |= _measured(policy, held, held_reference_PA, settings.beta, engine)
    snapshots.write(out, policies.trained(policy), partial(policies.save_policy, policy))
    if settings.adapter.kind != "none":
        policy = policies.merge_adapter(policy, inputs["model.weights"], out)
    policies.save_policy(policy, out)
    # What was only measured on is not seen: whoever tunes on the validation split may measure on it too.
    seen.write(out, (prompt_key(one.prompt) for one, _ in learned), [artifact.path for artifact in inputs.values()])
    headline = "accuracy" if "accuracy" in metrics else "loss"
    return Outcome("policy", metrics, headline, tokens=policy.tokens, notes=engine.notes() | notes)


def _begin(settings: Settings, inputs: dict[str, Artifact], engine: Engine) -> Policy:
    from alignment.training import policies

    return policies.open_policy(
        inputs["model.weights"],
        engine,
        shape=settings.model.shape,
        schema=settings.model.chat_schema,
        attention=settings.model.attention,
        four_bit=settings.adapter.kind == "qlora",
    )


def _pairs(dataset: Artifact, split: Split, policy: Policy, settings: Settings, out: Path) -> KeptPairs:
    """The pairs of a split that fit the context, as ids; a grade says nothing here, and no pair has a margin."""
    from alignment.data.grades import GRADES
    from alignment.training.comparisons import Renderer
    from alignment.training.kept_pairs import kept_pairs

    margins = dict.fromkeys(GRADES, 0.0)
    renderer = Renderer(policy.tokenizer, policy.schema, policy.tokens_limit, margins, settings.too_long)
    return kept_pairs(dataset.need("dataset").path, split, renderer, out, max_left_out=settings.max_left_out)


def _reference(policy: Policy, pairs: KeptPairs, split: Split, engine: Engine, out: Path) -> np.ndarray:
    """``logprobs_PA`` of the weights that training starts from; read where an earlier start has computed them."""
    import numpy as np

    from alignment import parts, ranks
    from alignment.training import team
    from alignment.training.direct import pair_logprobs

    name, rows = f"reference_{split}", [row for _, row in pairs]

    def work(some: Any) -> parts.Rows:
        found_PA = pair_logprobs(policy.model, some, pad_id=policy.tokenizer.pad_id, engine=engine)
        return [{"chosen": chosen, "rejected": rejected} for chosen, rejected in found_PA.tolist()]

    with console.progress(f"reference ({split})", len(pairs), "pairs") as progress:

        def count(done: int, _: bool) -> None:
            progress.advance(done)

        def mine(number: int) -> bool:
            return number % ranks.world() == ranks.rank()

        # Each process does its own parts; then all are there to be read by all.
        found = list(parts.in_parts(out, name, rows, PAIRS_A_PART, work, count, mine))
        if ranks.world() > 1:
            team.meet()
            found = list(parts.in_parts(out, name, rows, PAIRS_A_PART, work))
    return np.array([(row["chosen"], row["rejected"]) for row in found]).reshape(-1, 2)


def _train(
    policy: Policy,
    pairs: KeptPairs,
    reference_PA: np.ndarray,
    settings: Settings,
    inputs: dict[str, Artifact],
    engine: Engine,
    out: Path,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Notes and metrics of the training."""
    from alignment.training import direct
    from alignment.training.pair_rows import PairRows
    from alignment.training.session import train_on_pairs

    return train_on_pairs(
        policy,
        PairRows.gather(row for _, row in pairs),
        partial(direct.train, reference_PA=reference_PA, beta=settings.beta),
        title="dpo",
        out=out,
        numbers=settings.optimisation,
        engine=engine,
        tracker_settings=settings.tracker,
        config=settings.model_dump(mode="json"),
        inputs=inputs,
        seed=settings.seed,
    )


def _measured(
    policy: Policy, pairs: KeptPairs, reference_PA: np.ndarray, beta: float, engine: Engine
) -> dict[str, float]:
    """What the policy's implied reward says of held-out pairs, and how far it has moved on their answers.

    The log-ratios log π − log π_ref are of answers that neither drew; minus their mean is an estimate of KL(π_ref‖π)
    where the reference drew them itself. Printed with intervals over prompts.
    """
    import numpy as np

    from alignment.evals import preferences
    from alignment.training import team
    from alignment.training.direct import pair_logprobs

    if not pairs:
        return {}
    rows = [row for _, row in pairs]

    def work(some: list[PairRow]) -> np.ndarray:
        return pair_logprobs(policy.model, some, pad_id=policy.tokenizer.pad_id, engine=engine)

    ratios_PA = team.divided(rows, work) - reference_PA
    lead_P = beta * (ratios_PA[:, 0] - ratios_PA[:, 1])
    columns = {
        "accuracy": (1 + np.sign(lead_P)) / 2,
        "held_out_loss": np.logaddexp(0, -lead_P),
        "lead": lead_P,
        "chosen_log_ratio": ratios_PA[:, 0],
        "rejected_log_ratio": ratios_PA[:, 1],
    }
    values_PK = np.stack(list(columns.values()), axis=1)
    resamples = preferences.bootstrap(preferences.Pairs.of([one for one, _ in pairs]), CONFIDENCE, 0)
    found = dict(zip(columns, resamples.ratios(values_PK, np.ones_like(values_PK)), strict=True))
    table = [(name, f"{one.estimate:.3f}", f"{one.low:.3f} … {one.high:.3f}") for name, one in found.items() if one]
    console.table(f"on {len(pairs):,} held-out pairs", ("measure", "mean", "interval"), table, right=("mean",))
    return {name: one.estimate for name, one in found.items() if one}
