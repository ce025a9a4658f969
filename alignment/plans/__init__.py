"""Plans: Python functions that lay out whole pipelines. ``conf/pipeline/*.yaml`` chooses one and gives its numbers.

A plan is a module of this folder with ``Settings`` and ``steps(settings) -> list[Step]``.
"""

PLANS: dict[str, str] = {
    "mini": "the miniature, from nothing to a chat model and two reward models",
    "reward_effects": "margins, mixtures and the safety loss of reward models, over several seeds",
    "reward_scaling": "reward models of several sizes on several amounts of comparisons",
    "reward_rounds": "reward models trained through round i on the comparisons of round j",
    "warm": "reward models with averaged weights beside their members and their ensemble",
}
