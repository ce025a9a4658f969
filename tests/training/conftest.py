"""Fixtures of the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GemmaTokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    GemmaTokenizer().save_pretrained(folder)
    return folder
