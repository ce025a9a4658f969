"""Every stage as a run of a few seconds on the miniature, to be killed and started again."""

from __future__ import annotations

import json
from pathlib import Path

from tests_support import QUIET, call

from alignment.artifacts import RECORD

TRAINING = ("optimisation.steps=16", "optimisation.checkpoint_steps=3", "optimisation.batch=16")
TEACHER = ("careful", "questions", "teacher_base", "teacher", "teach", "taught")
FIRST = ("text", "tokenizer", "base", "conversations", *TEACHER, "sft")
PAIRS = ("stage=pairs", "models=[latest:teacher,latest:sft]", "prompts=latest:questions", "max_new_tokens=16")
TOLD = ("stage=teach/text", "teacher=latest:base", "data=latest:text", "top_k=4")
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": ((), ("stage=data", "recipe=miniature_prompts", "workers=2")),
    "teach": (
        FIRST,
        ("stage=teach", "teacher=latest:sft", "prompts=latest:questions", "unfinished=keep", "top_k=4"),
    ),
    "ghost": (
        (*FIRST, "dialogues"),
        ("stage=ghost", "policy=latest:sft", "dialogues=latest:dialogues", "keep=all"),
    ),
    "preprompt": (
        FIRST,
        ("stage=preprompt", "policy=latest:sft", "prompts=latest:questions", "min_gain=null"),
    ),
    "reject": (
        (*FIRST, "prompts", "helpfulness"),
        (
            "stage=reject",
            "policy=latest:sft",
            "prompts=latest:prompts",
            "reward=latest:helpfulness",
            "count=64",
            "tune_prompts=16",
            "unfinished=keep",
        ),
    ),
    "pairs": (FIRST, PAIRS),
    "label": (
        FIRST,
        ("stage=label", "pairs=latest:pairs", "ties=negligibly"),
    ),
    "tokenizer": (("text",), ("stage=tokenizer", "data=latest:text", "pieces=440")),
    "pretrain": (
        ("text", "tokenizer"),
        ("stage=pretrain", "data=latest:text", "tokenizer=latest:tokenizer", *TRAINING, *QUIET),
    ),
    "sft": (
        ("text", "tokenizer", "base", "conversations"),
        ("stage=sft", "model=latest:base", "data=latest:conversations", *TRAINING, *QUIET),
    ),
    "lora": (
        ("text", "tokenizer", "base", "conversations"),
        (
            "stage=sft",
            "model=latest:base",
            "data=latest:conversations",
            "adapter.kind=lora",
            *TRAINING,
            *QUIET,
        ),
    ),
    "distill": (
        ("text", "tokenizer", "base"),
        ("stage=distill", "teacher=latest:base", "data=latest:text", *TRAINING, *QUIET),
    ),
    "told": (("text", "tokenizer", "base"), TOLD),
    "offline": (
        ("text", "tokenizer", "base"),
        ("stage=distill/offline", "student.tokenizer=latest:tokenizer", "data=latest:told", *TRAINING, *QUIET),
    ),
    "gkd": (
        FIRST,
        (
            "stage=distill/on_policy",
            "student.weights=latest:sft",
            "teacher=latest:teacher",
            "data=latest:conversations",
            "drawing={share: 0.5, max_new_tokens: 12}",
            *TRAINING,
            *QUIET,
        ),
    ),
    "minillm": (
        FIRST,
        (
            "stage=distill/minillm",
            "student.weights=latest:sft",
            "teacher=latest:teacher",
            "data=latest:conversations",
            "drawing.max_new_tokens=12",
            "minillm={rollouts: 32, epochs: 2}",
            *TRAINING,
            *QUIET,
        ),
    ),
    "reward": (
        ("sft", "careful", "safety_mixture"),
        (
            "stage=reward",
            "model=latest:sft",
            "data=latest:safety_mixture",
            "centre=latest:careful",
            "safety_weight=1.0",
            "optimisation.epochs=null",
            *TRAINING,
            *QUIET,
        ),
    ),
    "dpo": (
        ("sft", "helpful_mixture"),
        ("stage=dpo", "model=latest:sft", "data=latest:helpful_mixture", "optimisation.epochs=null", *TRAINING, *QUIET),
    ),
    "merge": (
        ("helpfulness", "safety", "careful"),
        ("stage=merge", "models=[latest:helpfulness,latest:safety]", "centre=latest:careful"),
    ),
    "slerp": (
        ("lasting", "warp_1_run_1", "warp_1_run_2"),
        ("stage=merge/slerp", "models=[latest:warp_1_run_1,latest:warp_1_run_2]", "init=latest:lasting"),
    ),
    "export": (
        ("ppo",),
        ("stage=export", "model=latest:ppo", "licence=Apache-2.0", "allow_unknown=true"),
    ),
    "measure": (
        ("helpfulness", "safety", "helpful_pairs", "safety_pairs"),
        (
            "stage=measure",
            "models=[latest:helpfulness,latest:safety]",
            "comparisons=[latest:helpful_pairs,latest:safety_pairs]",
        ),
    ),
    "perplexity": (
        ("text", "tokenizer", "base", "teacher_base"),
        (
            "stage=perplexity",
            "models=[latest:teacher_base,latest:base]",
            "data=[latest:text]",
            "teacher=latest:teacher_base",
            "count=64",
        ),
    ),
    "assess": (
        (*FIRST, "prompts"),
        (
            "stage=assess",
            "model=latest:sft",
            "suite=miniature_safety",
            "suite.prompts=latest:prompts",
            "suite.count=24",
            "suite.decoding.max_new_tokens=12",
        ),
    ),
    "redteam": (
        (*FIRST, "prompts"),
        (
            "stage=redteam",
            "model=latest:sft",
            "world=latest:prompts",
            "per_cell=1",
            "judge.safe_above=0.5",
            "decoding.max_new_tokens=12",
        ),
    ),
    "answer": (
        (*FIRST, "prompts"),
        (
            "stage=answer",
            "model=latest:sft",
            "prompts=latest:prompts",
            "conversations=latest:conversations",
            "reference=latest:base",
            "count=600",
        ),
    ),
    "evaluate": (
        (*FIRST, "prompts"),
        (
            "stage=evaluate",
            "models=[latest:sft]",
            "prompts=latest:prompts",
            "conversations=latest:conversations",
            "reference=latest:base",
            "count=96",
        ),
    ),
    "side_by_side": (
        (*FIRST, "prompts"),
        (
            "stage=side_by_side",
            "models=[latest:teacher,latest:sft]",
            "prompts=latest:prompts",
            "count=96",
            "max_new_tokens=16",
        ),
    ),
    "rl": (
        ("lasting", "prompts", "helpfulness"),
        (
            "stage=rl",
            "policy=latest:lasting",
            "prompts=latest:prompts",
            "reward=latest:helpfulness",
            "drawing={samples: 2, max_new_tokens: 12}",
            "updating={steps: 8, batch: 8, minibatch: 8, checkpoint_steps: 2, learning_rate: 1e-4}",
            "watching={every: 2, prompts: 6, keep: best}",
            "anchoring={kind: ema, rate: 0.1}",
            "reward.whiten=running",
            *QUIET,
        ),
    ),
    "front": (
        ("versions",),
        ("stage=front", "evaluations=[latest:versions]"),
    ),
    "report": (
        ("versions", "judged"),
        ("stage=report", "artifacts=[latest:versions,latest:judged]", *QUIET),
    ),
}
"""Of each stage the finished steps of pipeline=smoke that it needs, and a command line of a few seconds."""
BEFORE: dict[str, tuple[str, ...]] = {"label": PAIRS, "offline": (*TOLD, "name=told")}
"""What is made first, where the pipeline has nothing of the kind."""
TIMED = {"rl": "plots.html", "report": "report.html"}
"""By stage a file that shows how long things took."""


def own(store: Path) -> Path:
    """The folder of what the stage under test made, and not of what other stages made for it."""
    records = {path: json.loads(path.read_text()) for path in (store / "solo").glob(f"*/{RECORD}")}
    parents = {parent["fingerprint"] for record in records.values() for parent in record.get("parents", {}).values()}
    (path,) = (path for path, record in records.items() if record.get("fingerprint") not in parents)
    return path.parent


def outcome(store: Path) -> dict[str, str]:
    """What the stage under test made: the digest of every file, and every number of the record that is no time."""
    record = json.loads((own(store) / RECORD).read_text())
    files = {name: digest for name, digest in record["files"].items() if name != TIMED.get(record["stage"])}
    numbers = {f"metrics/{name}": repr(value) for name, value in record["metrics"].items() if name != "seconds"}
    return files | numbers


def prepare(stage: str, store: Path) -> None:
    """Make in a store that has the stage's inputs what is still missing."""
    if stage in BEFORE:
        made = call(store, *BEFORE[stage])
        assert made.returncode == 0, made.stdout + made.stderr
        (store / "solo").rename(store / "given")
