"""Stages: each reads artifacts and writes one artifact. None imports another.

A stage is a module of this folder with ``Settings`` (importable without torch), ``ALGORITHM_VERSION``
(raised when the same settings would give another result) and ``run(settings, inputs, out) -> Outcome``.
Where it reads local files it has ``sources(settings) -> list[Path]``; where it reads from the hub,
``commits(settings) -> dict[str, str]``; where it writes much, ``disk_needed(settings) -> int``; where it reads
what other stages make for it, ``asks(settings) -> {key: (stage, name, settings)}``, by the keys of its inputs;
where inputs can stand against it, ``precheck(settings, inputs)``, asked of those that are there before others are made;
where keys depend on what is chosen, ``described(values)``, the settings' class that ``--help`` shows.
``inputs`` holds an artifact for every reference in the settings, by dotted key.
"""

STAGES: dict[str, str] = {
    "data": "read sources by a recipe into rows, splits and a ledger of what happened to every row",
    "tokenizer": "train a SentencePiece tokenizer on a dataset, or add control tokens to an existing one",
    "pretrain": "train a model from scratch, or further, on plain text",
    "sft": "fine-tune a model on conversations, with loss on the answers alone",
    "distill": "train a student on a teacher's distribution: stored, live, on its own answers (GKD), MiniLLM",
    "teach": "let a teacher answer prompts: conversations to learn from, with its top-k log-probabilities if wanted",
    "ghost": "draw answers under an instruction in every turn, and keep it in the first turn only (Ghost Attention)",
    "preprompt": "draw answers to adversarial prompts with a safety pre-prompt, and keep the safer ones without it",
    "pairs": "let two model variants answer the same prompts, for somebody to compare",
    "label": "have pairs of answers judged, by a scorer, a model or people: comparisons with grades",
    "reward": "train a reward model on comparisons: Bradley–Terry with margins by grade, and a safety loss",
    "reject": "draw K answers to every prompt and keep the best by a reward: rejection sampling, with a pool",
    "rl": "learn from rewards: PPO, RLOO or REINFORCE, held to a fixed or a moving anchor",
    "dpo": "learn from comparisons directly (DPO), a baseline for the above",
    "merge": "merge models that share their ancestor (linear, slerp, LITI, EMA), streamed within bounded memory",
    "measure": "measure judges of answers on held-out comparisons: accuracy by grade, calibration, thresholds",
    "perplexity": "measure models on held-out rows: perplexity by arm and size, KL to a teacher, over several seeds",
    "assess": "examine one model on one suite: every example with its measures",
    "answer": "let one model answer held-out prompts, and measure each answer: gold and other rewards, KL, perplexity",
    "evaluate": "measure models on held-out prompts and suites, beside each other: gold reward, KL, safety, recall …",
    "side_by_side": "put a candidate beside a baseline: win rates by a scorer, an LLM judge in both orders, or people",
    "redteam": "attack a model by templates, another model and people's sessions; every violation becomes a regression",
    "front": "compare runs, merges and sweeps by reward over KL: fronts, equal KL, intervals over seeds",
    "report": "show a lineage, its models, fronts, curves and samples on one page that needs no network",
    "export": "write a folder to release: weights, tokenizer, model card, licences, checksums",
}
