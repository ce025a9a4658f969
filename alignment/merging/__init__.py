"""Merging: new weights from those of several models that share an ancestor, without holding a model in memory.

``kernels`` is the arithmetic, on tensors. The rest is files: ``layout`` reads where tensors lie, ``plan`` checks that
models can be merged, ``ancestors`` that they descend from one, ``stream`` computes shard by shard, and ``checkpoint``
makes a model directory of it.
"""
