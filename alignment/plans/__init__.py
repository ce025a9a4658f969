"""Plans: Python functions that lay out whole pipelines. ``conf/pipeline/*.yaml`` chooses one and gives its numbers.

A plan is a module of this folder with ``Settings`` and ``steps(settings) -> list[Step]``.
"""

PLANS: dict[str, str] = {
    "mini": "the miniature, from nothing to a chat model",
}
