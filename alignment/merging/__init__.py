"""Merging: new weights from those of several models that share an ancestor, without holding a model in memory.

``kernels`` is the arithmetic, on tensors, and ``coefficients`` what each model counts, from dot products; ``geometry``
says what those tell of lengths and angles. The rest is files: ``layout`` reads where tensors lie, ``plan`` checks that
models can be merged, ``ancestors`` that they descend from one; ``members`` finds what is named, and ``adapters`` makes
it whole; ``stream`` computes shard by shard in the memory of ``blocks``, ``checkpoint`` makes a model directory of it.
``front`` compares what came of it, by reward and KL.
"""
