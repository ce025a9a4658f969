"""Commands: they read artifacts and write none. None imports another.

A command is a module of this folder with ``Settings`` (importable without torch) and
``run(settings, inputs, store)``; ``inputs`` holds an artifact for every reference in the settings. What it returns, if
anything, is the exit code.
"""

COMMANDS: dict[str, str] = {
    "chat": "talk to a model in the terminal, or ask it one thing with prompt=…",
    "status": "show how steps fare: progress, what is queued and why, what has failed, with Slurm or without",
    "show": "print an artifact: lineage, settings, metrics, and what is inside",
    "annotate": "write the file in which people compare pairs of answers, and what they are told",
    "vet": "have a person judge a blinded sample of answers, human and model mixed, and import the verdicts",
    "view": "make the W&B workspace that a report defined, for a pipeline's runs that are on the server",
    "serve": "serve a reward model over HTTP, for training on other machines and for other tools",
    "estimate": "say what a run would take: memory of each GPU, what passes between them, the least that it fits",
    "gate": "say whether a candidate may take the best model's place, by rules on what was measured (exit code 1: no)",
    "prune": "free the disk of what nothing was made from and nobody needs to resume",
}
