"""Which model a stage starts from, and what is added to it. Importable without torch."""

from __future__ import annotations

from typing import Literal

from alignment.settings import Settings, execution, identity, reference


class ModelSettings(Settings):
    """``conf/model/*.yaml``. On the command line ``model=latest:sft`` is short for ``model.weights=latest:sft``."""

    weights: str = reference("the weights to start from: an artifact of ours, a folder, a hub repository")
    shape: str | None = identity("the shape that the weights must have, by preset; null takes what is there")
    chat_schema: Literal["auto", "gemma1", "gemma1_table4", "gemma2"] = identity(
        "how conversations become tokens; auto is the weights' own, or their family's"
    )
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] = execution(
        "attention kernel; auto chooses by model and device, and a wrong choice is refused"
    )


class AdapterSettings(Settings):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on every projection; QLoRA (2305.14314) on CUDA."""

    kind: Literal["none", "lora", "qlora"] = identity("train all weights, an adapter, or an adapter on 4-bit weights")
    rank: int = identity("rank of the adapter", ge=1)
    alpha: float = identity("the adapter's scale is alpha / rank", gt=0)
    dropout: float = identity("dropout before the adapter", ge=0, lt=1)
