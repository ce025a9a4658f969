"""Tiny classifiers in Hugging Face's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "bad", "good"]
WINDOW = 16
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.5,  # eval mode, or scores would differ from call to call
}


def build(folder: Path, *labels: str, problem: str | None = None) -> Path:
    """A BERT that reads ``WINDOW`` tokens, with these labels."""
    torch.manual_seed(0)
    config = BertConfig(
        **SHAPE,
        max_position_embeddings=WINDOW,
        initializer_range=0.5,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
        problem_type=problem,
    )
    return saved(BertForSequenceClassification(config), folder)


def saved(model: Any, folder: Path) -> Path:
    """A model with a tokenizer of ``WORDS``."""
    model.save_pretrained(folder)
    BertTokenizerFast(vocab={word: place for place, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder
